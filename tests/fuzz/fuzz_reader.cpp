// libFuzzer on the readers of integer models: any bytes give a model or an error. An input that
// begins with 'f' is a file; any other is four parts (spec, encodings, tensors, data), divided by
// 0xff, which are put together with a right checksum: so what lies behind that is reached too.
#include <array>
#include <stdexcept>
#include <string>

#include "integer/file.h"

namespace {

uint32_t checksum(const std::string& bytes, uint32_t before) {
  uint32_t crc = ~before;
  for (char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int k = 0; k < 8; ++k) crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
  }
  return ~crc;
}

std::string json_text(const std::string& text) {
  std::string made = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') made += '\\';
    made += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return made + '"';
}

std::string file_of(const std::array<std::string, 4>& parts) {
  // Control characters become spaces in the header, so the sum is of the parts as they are read.
  std::array<std::string, 4> read = parts;
  for (size_t i = 0; i < 2; ++i) {
    for (char& c : read[i]) c = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  uint32_t sum = checksum(read[3], checksum(read[1], checksum(read[0], 0)));
  std::string header = R"({"__metadata__":{"format":"bitpare-integer","version":"1","checksum":")" +
                       std::to_string(sum) + R"(","encodings":)" + json_text(read[1]) +
                       R"(,"spec":)" + json_text(read[0]) + "}" + (read[2].empty() ? "" : ",") +
                       read[2] + "}";
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(header.size() >> (8 * i) & 0xff);
  return file + header + read[3];
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace bitpare::integer;
  std::string input(reinterpret_cast<const char*>(bytes), size), file;
  if (input.starts_with('f')) {
    file = input.substr(1);
  } else {
    std::array<std::string, 4> parts;
    size_t part = 0;
    for (char c : input) {
      if (c == '\xff' && part < 3) {
        ++part;
      } else {
        parts[part] += c;
      }
    }
    file = file_of(parts);
  }
  try {
    Saved saved = decode(file);
    Spec::parse(Json::parse(saved.spec));
  } catch (const std::runtime_error&) {
    // what a reader says of a file that is none
  }
  return 0;
}
