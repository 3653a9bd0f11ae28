// Integer models as safetensors files, which run without Python and without the class that the
// model was made from.
#pragma once
#include "integer/program.h"

namespace bitpare::integer {

// spec: JSON text. The tensors are what it names.
struct Saved {
  std::string spec;
  Tensors tensors;
};

// Returns the content of a file. Weights are stored in the fewest bits that hold them, or as a
// bitmap and the weights that are not 0.
std::string encode(const Saved& model);

// Reads a model from the content of a file. Throws std::runtime_error that names the field if it is
// cut off, damaged, of another kind or of a newer version. Memory is allocated for the bytes that
// are there, not for those that it claims.
Saved decode(std::string_view file);

// Reads a file by decode(); errors name the file.
Saved load(const std::string& path);

}  // namespace bitpare::integer
