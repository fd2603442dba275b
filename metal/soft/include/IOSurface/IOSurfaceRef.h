// Stands in for the SDK's header.
#pragma once
typedef struct __IOSurface* IOSurfaceRef;
