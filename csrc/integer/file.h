// Integer models as safetensors files: what runs here runs elsewhere, without Python or the class
// the model was made from.
#pragma once
#include "integer/program.h"

namespace bitpare::integer {

// spec: JSON text. The tensors are what it names.
struct Saved {
  std::string spec;
  Tensors tensors;
};

// Written beside the path and renamed, so that there is never half a file. Weights are stored in as
// few bits as hold them, or as a bitmap and those that are not 0.
void save(const std::string& path, const Saved& model);

// Throws std::runtime_error that names the file and the field: for a file that is cut off, damaged,
// of another kind or of a newer version.
Saved load(const std::string& path);

}  // namespace bitpare::integer
