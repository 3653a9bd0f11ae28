#include "integer/file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>
#include <stdexcept>

namespace bitpare::integer {
namespace {

constexpr const char* kFormat = "bitpare-integer";
constexpr int64_t kFileVersion = 1;
constexpr uint64_t kMostHeader = uint64_t{1} << 28;
constexpr int64_t kMostBytes = int64_t{1} << 48;
constexpr size_t kMostDims = 64;

[[noreturn]] void fail(const std::string& path, const std::string& why) {
  throw std::runtime_error(path + ": " + why);
}

uint32_t checksum(std::string_view bytes, uint32_t before = 0) {
  static const auto table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t i = 0; i < 256; ++i) {
      made[i] = i;
      for (int k = 0; k < 8; ++k) made[i] = made[i] & 1 ? made[i] >> 1 ^ 0xedb88320u : made[i] >> 1;
    }
    return made;
  }();
  uint32_t crc = ~before;
  for (char c : bytes) crc = table[(crc ^ static_cast<uint8_t>(c)) & 0xff] ^ crc >> 8;
  return ~crc;
}

std::string json_text(std::string_view text) {
  std::string made = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') made += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      std::array<char, 8> escape{};
      std::snprintf(escape.data(), escape.size(), "\\u%04x", static_cast<unsigned>(c));
      made += escape.data();
    } else {
      made += c;
    }
  }
  return made + "\"";
}

std::string listed(at::IntArrayRef numbers) {
  std::string made = "[";
  for (int64_t n : numbers) made += (made.size() > 1 ? "," : "") + std::to_string(n);
  return made + "]";
}

// -- weights in few bits

// How a tensor of int8 codes is stored: each code is an integer of `bits` bits times 2^shift.
struct Encoding {
  int64_t bits = 8, shift = 0;
  bool sparse = false;
  std::vector<int64_t> shape;
};

struct Codes {
  const int8_t* at;
  int64_t count;
};

int64_t common_shift(const Codes& codes) {
  int all = 0;
  for (int64_t i = 0; i < codes.count; ++i) all |= codes.at[i] < 0 ? -codes.at[i] : codes.at[i];
  return all == 0 ? 0 : __builtin_ctz(static_cast<unsigned>(all));
}

// One bit holds -1 and 1, without 0.
int64_t bits_for(const Codes& codes, int64_t shift) {
  int low = 0, high = 0;
  bool zeros = codes.count == 0;
  for (int64_t i = 0; i < codes.count; ++i) {
    int code = codes.at[i] >> shift;
    low = std::min(low, code);
    high = std::max(high, code);
    zeros |= code == 0;
  }
  if (!zeros && low >= -1 && high <= 1) return 1;
  if (low >= -2 && high <= 1) return 2;
  return low >= -8 && high <= 7 ? 4 : 8;
}

Encoding encoding_of(const Tensor& tensor, const Codes& codes) {
  Encoding made;
  made.shape = tensor.sizes().vec();
  made.shift = common_shift(codes);
  made.bits = bits_for(codes, made.shift);
  if (made.bits == 8) made.shift = 0;
  int64_t kept = codes.count - std::count(codes.at, codes.at + codes.count, int8_t{0});
  if ((codes.count + 7) / 8 + kept < (codes.count * made.bits + 7) / 8) {
    made = {8, 0, true, made.shape};
  }
  return made;
}

// The code at a place of one bit is 1 or -1.
int decoded(unsigned field, int64_t bits) {
  if (bits == 1) return field ? 1 : -1;
  int sign = 1 << (bits - 1);
  return (static_cast<int>(field) ^ sign) - sign;
}

std::string encoded(const Codes& codes, const Encoding& how) {
  std::string made;
  if (how.sparse) {
    made.assign(static_cast<size_t>((codes.count + 7) / 8), '\0');
    for (int64_t i = 0; i < codes.count; ++i) {
      if (codes.at[i] == 0) continue;
      auto& byte = made[static_cast<size_t>(i / 8)];
      byte = static_cast<char>(static_cast<unsigned char>(byte) | 1u << (i % 8));
    }
    for (int64_t i = 0; i < codes.count; ++i) {
      if (codes.at[i] != 0) made += static_cast<char>(codes.at[i]);
    }
    return made;
  }
  int64_t each = 8 / how.bits;
  made.assign(static_cast<size_t>((codes.count + each - 1) / each), '\0');
  unsigned mask = (1u << how.bits) - 1;
  for (int64_t i = 0; i < codes.count; ++i) {
    int code = codes.at[i] >> how.shift;
    unsigned field = how.bits == 1 ? code > 0 : static_cast<unsigned>(code) & mask;
    auto& byte = made[static_cast<size_t>(i / each)];
    byte = static_cast<char>(static_cast<unsigned char>(byte) | field << (i % each * how.bits));
  }
  return made;
}

// count: the elements of the shape. Memory is allocated only after the bytes for it are known to be
// there.
Tensor decoded(std::string_view bytes, const Encoding& how, int64_t count) {
  auto byte = [&](int64_t i) { return static_cast<unsigned char>(bytes[static_cast<size_t>(i)]); };
  auto size = static_cast<int64_t>(bytes.size());
  auto wrong = [] {
    throw std::runtime_error("data_offsets: too few or many bytes for its shape");
  };
  int64_t each = 8 / how.bits;
  if (how.sparse ? size < (count + 7) / 8 : size != (count + each - 1) / each) wrong();
  Tensor made = at::zeros(how.shape, at::kChar);
  auto* out = made.data_ptr<int8_t>();
  if (how.sparse) {
    int64_t next = (count + 7) / 8;
    for (int64_t i = 0; i < count; ++i) {
      if (!(byte(i / 8) >> (i % 8) & 1)) continue;
      if (next >= size) wrong();
      out[i] = static_cast<int8_t>(byte(next++));
    }
    if (next != size) wrong();
    return made;
  }
  unsigned mask = (1u << how.bits) - 1;
  for (int64_t i = 0; i < count; ++i) {
    unsigned field = byte(i / each) >> (i % each * how.bits) & mask;
    out[i] = static_cast<int8_t>(decoded(field, how.bits) * (1 << how.shift));
  }
  return made;
}

// -- types

struct Type {
  const char* name;
  at::ScalarType type;
};
constexpr std::array<Type, 4> kTypes = {
    {{"I8", at::kChar}, {"U8", at::kByte}, {"I32", at::kInt}, {"F32", at::kFloat}}};

const char* name_of(at::ScalarType type) {
  for (const Type& t : kTypes) {
    if (t.type == type) return t.name;
  }
  throw std::runtime_error(std::string("a tensor of ") + at::toString(type) + " cannot be saved");
}

at::ScalarType type_of(const std::string& name) {
  for (const Type& t : kTypes) {
    if (name == t.name) return t.type;
  }
  throw std::runtime_error("dtype " + name + " is not known");
}

}  // namespace

std::string encode(const Saved& model) {
  std::string data, entries, encodings;
  for (const auto& [name, given] : model.tensors) {
    Tensor tensor = given.cpu().contiguous();
    size_t begin = data.size();
    std::string type = name_of(tensor.scalar_type());
    std::vector<int64_t> shape = tensor.sizes().vec();
    Encoding how;
    if (tensor.scalar_type() == at::kChar) {
      Codes codes = {tensor.const_data_ptr<int8_t>(), tensor.numel()};
      how = encoding_of(tensor, codes);
      if (how.sparse || how.bits < 8) {
        data += encoded(codes, how);
        type = "U8";
        shape = {static_cast<int64_t>(data.size() - begin)};
        encodings += (encodings.empty() ? "" : ",") + json_text(name) +
                     ":{\"bits\":" + std::to_string(how.bits) +
                     ",\"shift\":" + std::to_string(how.shift) +
                     ",\"sparse\":" + (how.sparse ? "true" : "false") +
                     ",\"shape\":" + listed(how.shape) + "}";
      }
    }
    if (data.size() == begin) {
      data.append(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
    }
    int64_t offsets[] = {static_cast<int64_t>(begin), static_cast<int64_t>(data.size())};
    entries += "," + json_text(name) + ":{\"dtype\":\"" + type + "\",\"shape\":" + listed(shape) +
               ",\"data_offsets\":" + listed(offsets) + "}";
  }
  encodings = "{" + encodings + "}";
  uint32_t sum = checksum(data, checksum(encodings, checksum(model.spec)));
  std::string header = "{\"__metadata__\":{\"format\":\"" + std::string(kFormat) +
                       "\",\"version\":\"" + std::to_string(kFileVersion) + "\",\"checksum\":\"" +
                       std::to_string(sum) + "\",\"encodings\":" + json_text(encodings) +
                       ",\"spec\":" + json_text(model.spec) + "}" + entries + "}";
  header.append((8 - header.size() % 8) % 8, ' ');
  std::array<char, 8> length{};
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  std::string content(length.data(), length.size());
  content.append(header).append(data);
  return content;
}

namespace {

// Returns the product of sizes; throws if one is negative or the product overflows.
int64_t count_of(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t n : shape) {
    if (n < 0 || __builtin_mul_overflow(count, n, &count) || count > kMostBytes) {
      throw std::runtime_error("shape must be sizes of 0 or more, of at most " +
                               std::to_string(kMostBytes) + " elements");
    }
  }
  return count;
}

std::vector<int64_t> shape_from(const Json& json) {
  std::vector<int64_t> shape = json.at("shape").wholes("shape");
  if (shape.size() > kMostDims) throw std::runtime_error("shape has too many dimensions");
  return shape;
}

Encoding encoding_from(const Json& json) {
  Encoding how;
  how.bits = json.at("bits").whole("bits", 1, 8);
  how.shift = json.at("shift").whole("shift", 0, 7);
  how.sparse = json.at("sparse").boolean("sparse");
  how.shape = shape_from(json);
  bool packed = how.bits == 1 || how.bits == 2 || how.bits == 4;
  if (!packed && !(how.sparse && how.bits == 8)) throw std::runtime_error("bits is not known");
  return how;
}

Tensor tensor_from(const Json& entry, std::string_view data, const Json& encoding) {
  std::vector<int64_t> offsets = entry.at("data_offsets").wholes("data_offsets");
  auto size = static_cast<int64_t>(data.size());
  if (offsets.size() != 2 || offsets[0] < 0 || offsets[0] > offsets[1] || offsets[1] > size) {
    throw std::runtime_error("data_offsets lie outside of the file");
  }
  std::string_view bytes =
      data.substr(static_cast<size_t>(offsets[0]), static_cast<size_t>(offsets[1] - offsets[0]));
  at::ScalarType type = type_of(entry.at("dtype").text("dtype"));
  std::vector<int64_t> shape = shape_from(entry);
  int64_t count = count_of(shape);
  if (!encoding.is_null()) {
    Encoding how = encoding_from(encoding);
    return decoded(bytes, how, count_of(how.shape));
  }
  if (count * static_cast<int64_t>(c10::elementSize(type)) != static_cast<int64_t>(bytes.size())) {
    throw std::runtime_error("shape does not fit data_offsets");
  }
  Tensor made = at::empty(shape, type);
  if (!bytes.empty()) std::memcpy(made.data_ptr(), bytes.data(), bytes.size());
  return made;
}

}  // namespace

Saved decode(std::string_view file) {
  if (file.size() < 8) throw std::runtime_error("the file is cut off: it has no header");
  uint64_t length = 0;
  for (size_t i = 0; i < 8; ++i) {
    length |= static_cast<uint64_t>(static_cast<unsigned char>(file[i])) << (8 * i);
  }
  if (length > kMostHeader) throw std::runtime_error("header: not a safetensors file");
  if (length > file.size() - 8) {
    throw std::runtime_error("the file is cut off: its header has " + std::to_string(length) +
                             " bytes, there are " + std::to_string(file.size() - 8));
  }
  Json header = Json::parse(file.substr(8, length));
  const Json& metadata = header.get("__metadata__");
  const Json& format = metadata.get("format");
  if (format.kind() != Json::Kind::text || format.text("format") != kFormat) {
    throw std::runtime_error("format: a safetensors file, but not of an integer model");
  }
  if (metadata.at("version").text("version") != std::to_string(kFileVersion)) {
    throw std::runtime_error("version " + metadata.at("version").text("version") +
                             "; this bitpare reads version " + std::to_string(kFileVersion));
  }
  std::string_view data = file.substr(8 + length);
  Saved made;
  made.spec = metadata.at("spec").text("spec");
  const std::string& encodings = metadata.at("encodings").text("encodings");
  // Tensors must lie one after the other, as safetensors requires; otherwise a few bytes could pass
  // for many tensors.
  std::vector<std::pair<int64_t, int64_t>> spans;
  for (const auto& [name, entry] : header.object("header")) {
    if (name == "__metadata__") continue;
    auto offsets = entry.at("data_offsets").wholes("data_offsets");
    if (offsets.size() != 2 || offsets[0] > offsets[1]) {
      throw std::runtime_error("tensor " + name + ": data_offsets must be a begin and an end");
    }
    spans.emplace_back(offsets[0], offsets[1]);
  }
  std::sort(spans.begin(), spans.end());
  int64_t end = 0;
  for (const auto& [from, to] : spans) {
    if (from != end) throw std::runtime_error("data_offsets overlap or leave a gap");
    end = to;
  }
  if (end > static_cast<int64_t>(data.size())) {
    throw std::runtime_error("the file is cut off: " + std::to_string(end) +
                             " bytes of data are wanted, there are " + std::to_string(data.size()));
  }
  uint32_t sum = checksum(data, checksum(encodings, checksum(made.spec)));
  if (metadata.at("checksum").text("checksum") != std::to_string(sum)) {
    throw std::runtime_error("checksum: the file is damaged");
  }
  Json known = Json::parse(encodings);
  for (const auto& [name, entry] : header.object("header")) {
    if (name == "__metadata__") continue;
    try {
      made.tensors[name] = tensor_from(entry, data, known.get(name));
    } catch (const std::runtime_error& error) {
      throw std::runtime_error("tensor " + name + ": " + error.what());
    }
  }
  return made;
}

Saved load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path, std::string("cannot be opened: ") + std::strerror(errno));
  try {
    std::string bytes;
    std::array<char, 1 << 16> part{};
    while (file.read(part.data(), part.size()), file.gcount() > 0) {
      bytes.append(part.data(), static_cast<size_t>(file.gcount()));
    }
    if (file.bad()) fail(path, std::string("cannot be read: ") + std::strerror(errno));
    return decode(bytes);
  } catch (const std::bad_alloc&) {
    fail(path, "not enough memory to read it");
  } catch (const std::exception& error) {
    fail(path, error.what());
  }
}

}  // namespace bitpare::integer
