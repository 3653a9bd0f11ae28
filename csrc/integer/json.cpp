#include "integer/json.h"

#include <charconv>
#include <cmath>
#include <cstring>
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
    while (at_ < text_.size() && std::strchr(" \t\n\r", text_[at_]) && text_[at_] != '\0') ++at_;
  }
  char peek() {
    skip();
    if (at_ == text_.size()) fail("the text ends early");
    return text_[at_];
  }
  void expect(char wanted) {
    if (peek() != wanted) fail(std::string("expected '") + wanted + "'");
    ++at_;
  }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kDeepest) fail("nested too deeply");
    if (++values_ > kMostValues) fail("more than " + std::to_string(kMostValues) + " values");
    Json made;
    char first = peek();
    if (first == '{') {
      made.kind_ = Json::Kind::object;
      each('}', [&] {
        peek();
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
      made.number_ = number();
    }
    return made;
  }

  double number() {
    size_t begin = at_;
    auto digits = [&] {
      size_t from = at_;
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
      if (at_ == from) fail("expected a value");
    };
    take("-");
    if (!take("0")) digits();
    if (take(".")) digits();
    if (take("e") || take("E")) {
      if (!take("+")) take("-");
      digits();
    }
    double made = 0;
    auto [end, error] = std::from_chars(text_.data() + begin, text_.data() + at_, made);
    if (error != std::errc() || end != text_.data() + at_) fail("a number that no double holds");
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
      auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') break;
      if (c < 0x20) fail("a control character in a text");
      if (c == '\\') {
        ++at_;
        escaped(&made);
      } else {
        size_t length = utf8_length();
        made += text_.substr(at_, length);
        at_ += length;
      }
    }
    ++at_;
    return made;
  }

  // How many bytes the character here has. The shortest form of a code point that is no surrogate.
  size_t utf8_length() const {
    auto byte = [&](size_t i) {
      return at_ + i < text_.size() ? static_cast<unsigned char>(text_[at_ + i]) : 0u;
    };
    unsigned first = byte(0);
    if (first < 0x80) return 1;
    size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    unsigned second = byte(1), least = 0x80, most = 0xbf;
    if (first == 0xe0) least = 0xa0;
    if (first == 0xed) most = 0x9f;
    if (first == 0xf0) least = 0x90;
    if (first == 0xf4) most = 0x8f;
    bool good = first >= 0xc2 && first <= 0xf4 && second >= least && second <= most;
    for (size_t i = 2; i < length; ++i) good &= (byte(i) & 0xc0) == 0x80;
    if (!good) fail("bytes that are not UTF-8");
    return length;
  }

  unsigned hex() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      char c = at_ < text_.size() ? text_[at_] : ' ';
      bool digit = c >= '0' && c <= '9', low = c >= 'a' && c <= 'f', high = c >= 'A' && c <= 'F';
      if (!digit && !low && !high) fail("\\u needs four hexadecimal digits");
      code = code * 16 + static_cast<unsigned>(digit ? c - '0' : low ? c - 'a' + 10 : c - 'A' + 10);
    }
    return code;
  }

  void escaped(std::string* made) {
    if (at_ == text_.size()) fail("the text ends early");
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    char c = text_[at_++];
    size_t known = kLetters.find(c);
    if (known != std::string_view::npos) {
      made->push_back(kMeant[known]);
      return;
    }
    if (c != 'u') fail("an escape that is not known");
    unsigned code = hex();
    if (code >= 0xd800 && code < 0xdc00) {  // the first of a pair
      if (!take("\\u")) fail("half of a surrogate pair");
      unsigned second = hex();
      if (second < 0xdc00 || second > 0xdfff) fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
    } else if (code >= 0xdc00 && code <= 0xdfff) {
      fail("half of a surrogate pair");
    }
    append_utf8(code, made);
  }

  static void append_utf8(unsigned code, std::string* made) {
    auto put = [&](unsigned byte) { made->push_back(static_cast<char>(byte)); };
    if (code < 0x80) return put(code);
    if (code < 0x800) {
      put(0xc0 | code >> 6);
    } else if (code < 0x10000) {
      put(0xe0 | code >> 12);
      put(0x80 | (code >> 6 & 0x3f));
    } else {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3f));
      put(0x80 | (code >> 6 & 0x3f));
    }
    put(0x80 | (code & 0x3f));
  }

  std::string_view text_;
  size_t at_ = 0;
  int64_t values_ = 0;
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

int64_t Json::whole(const char* what, int64_t least, int64_t most) const {
  int64_t value = whole(what);
  if (value < least || value > most) {
    throw std::runtime_error(std::string(what) + " must be from " + std::to_string(least) + " to " +
                             std::to_string(most) + ", got " + std::to_string(value));
  }
  return value;
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
