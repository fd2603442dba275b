// metal-cpp's own symbols, once per library.
#define NS_PRIVATE_IMPLEMENTATION
#define MTL_PRIVATE_IMPLEMENTATION
#include "metal_cpp.h"
