// A reader of JSON (RFC 8259). Numbers are doubles, text is UTF-8; at most kMostValues values, so
// that a file cannot ask for much more memory than it has bytes.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace bitpare::integer {

constexpr int64_t kMostValues = int64_t{1} << 21;

class Json {
 public:
  enum class Kind { null, boolean, number, text, list, object };

  // Throws std::runtime_error that names the place.
  static Json parse(std::string_view text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::null; }

  // Each throws unless the value is of that kind; the error names `what`.
  bool boolean(const char* what) const;
  double number(const char* what) const;
  int64_t whole(const char* what) const;
  int64_t whole(const char* what, int64_t least, int64_t most) const;
  const std::string& text(const char* what) const;
  const std::vector<Json>& list(const char* what) const;
  const std::map<std::string, Json>& object(const char* what) const;

  // A member; null where there is none. at() throws instead.
  const Json& get(const std::string& name) const;
  const Json& at(const std::string& name) const;
  std::vector<int64_t> wholes(const char* what) const;
  std::vector<double> numbers(const char* what) const;

 private:
  friend class Reader;
  Kind kind_ = Kind::null;
  bool boolean_ = false;
  double number_ = 0;
  std::string text_;
  std::vector<Json> list_;
  std::map<std::string, Json> object_;
};

}  // namespace bitpare::integer
