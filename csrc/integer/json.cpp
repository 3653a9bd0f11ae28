#include "integer/json.h"

#include <cctype>
#include <charconv>
#include <cmath>
#include <stdexcept>

namespace bitpare::integer {

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  Json all() {
    Json value = this->value(0);
    skip();
    if (at_ != text_.size()) fail("more text after the value");
    return value;
  }

 private:
  static constexpr int kDeepest = 64;

  [[noreturn]] void fail(const std::string& why) const {
    throw std::runtime_error("JSON, byte " + std::to_string(at_) + ": " + why);
  }
  void skip() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
  }
  char peek() {
    skip();
    if (at_ == text_.size()) fail("the text ends early");
    return text_[at_];
  }
  void expect(char wanted) {
    if (peek() != wanted) fail(std::string("expected '") + wanted + "', got '" + text_[at_] + "'");
    ++at_;
  }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kDeepest) fail("nested too deeply");
    Json made;
    char first = peek();
    if (first == '{') {
      made.kind_ = Json::Kind::object;
      each('}', [&] {
        std::string name = text();
        expect(':');
        made.object_.insert_or_assign(name, value(depth + 1));
      });
    } else if (first == '[') {
      made.kind_ = Json::Kind::list;
      each(']', [&] { made.list_.push_back(value(depth + 1)); });
    } else if (first == '"') {
      made.kind_ = Json::Kind::text;
      made.text_ = text();
    } else if (take("true") || take("false")) {
      made.kind_ = Json::Kind::boolean;
      made.boolean_ = first == 't';
    } else if (!take("null")) {
      made.kind_ = Json::Kind::number;
      auto [end, error] =
          std::from_chars(text_.data() + at_, text_.data() + text_.size(), made.number_);
      if (error != std::errc() || !std::isfinite(made.number_)) fail("expected a value");
      at_ = static_cast<size_t>(end - text_.data());
    }
    return made;
  }

  // read() for each element up to `close`.
  template <class Read>
  void each(char close, Read read) {
    ++at_;
    if (peek() == close) {
      ++at_;
      return;
    }
    while (true) {
      read();
      if (peek() == close) break;
      expect(',');
    }
    ++at_;
  }

  std::string text() {
    expect('"');
    std::string made;
    while (true) {
      if (at_ == text_.size()) fail("the text ends early");
      char c = text_[at_++];
      if (c == '"') return made;
      made.push_back(c == '\\' ? escaped() : c);
    }
  }

  char escaped() {
    if (at_ == text_.size()) fail("the text ends early");
    char c = text_[at_++];
    switch (c) {
      case 'n':
        return '\n';
      case 't':
        return '\t';
      case 'r':
        return '\r';
      case 'b':
        return '\b';
      case 'f':
        return '\f';
      case 'u': {
        unsigned code = 0;
        std::string_view digits = text_.substr(at_, 4);
        auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
        if (error != std::errc() || end != digits.data() + 4 || code > 127) {
          fail("an escape that is not understood");
        }
        at_ += 4;
        return static_cast<char>(code);
      }
      default:
        return c;
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

namespace {

[[noreturn]] void wrong(const char* what, const char* wanted) {
  throw std::runtime_error(std::string(what) + " must be " + wanted);
}

}  // namespace

Json Json::parse(std::string_view text) { return Reader(text).all(); }

bool Json::boolean(const char* what) const {
  if (kind_ != Kind::boolean) wrong(what, "true or false");
  return boolean_;
}

double Json::number(const char* what) const {
  if (kind_ != Kind::number) wrong(what, "a number");
  return number_;
}

int64_t Json::whole(const char* what) const {
  double value = number(what);
  if (value != std::floor(value) || std::abs(value) > 9e15) wrong(what, "a whole number");
  return static_cast<int64_t>(value);
}

const std::string& Json::text(const char* what) const {
  if (kind_ != Kind::text) wrong(what, "text");
  return text_;
}

const std::vector<Json>& Json::list(const char* what) const {
  if (kind_ != Kind::list) wrong(what, "a list");
  return list_;
}

const std::map<std::string, Json>& Json::object(const char* what) const {
  if (kind_ != Kind::object) wrong(what, "an object");
  return object_;
}

const Json& Json::get(const std::string& name) const {
  static const Json none;
  auto found = object_.find(name);
  return found == object_.end() ? none : found->second;
}

const Json& Json::at(const std::string& name) const {
  const Json& found = get(name);
  if (found.is_null()) throw std::runtime_error(name + " is missing");
  return found;
}

std::vector<int64_t> Json::wholes(const char* what) const {
  std::vector<int64_t> made;
  for (const Json& v : list(what)) made.push_back(v.whole(what));
  return made;
}

std::vector<double> Json::numbers(const char* what) const {
  std::vector<double> made;
  for (const Json& v : list(what)) made.push_back(v.number(what));
  return made;
}

}  // namespace bitpare::integer
