// Stands in for the SDK's header; metal-cpp relies on what Darwin's headers include on the way.
#pragma once
#include <math.h>
#include <string>

#define TARGET_OS_OSX 1
