// All that metal-cpp takes from IOSurface, for builds without Apple's SDK.
#pragma once
typedef struct __IOSurface* IOSurfaceRef;
