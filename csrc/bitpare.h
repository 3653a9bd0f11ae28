// For C++ programs that use bitpare's ops through torch's dispatcher, without Python.
// Link the CMake target `bitpare`: it references the anchor, so that linkers that drop libraries
// nothing refers to keep this one, whose ops register themselves when it is loaded.
#pragma once

extern "C" [[gnu::visibility("default")]] const char* bitpare_version();
