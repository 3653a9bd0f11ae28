#include "bitpare.h"

extern "C" const char* bitpare_version() { return BITPARE_VERSION; }
