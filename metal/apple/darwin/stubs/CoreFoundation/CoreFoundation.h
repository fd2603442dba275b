// All that metal-cpp takes from CoreFoundation, for builds without Apple's SDK.
#pragma once
typedef double CFTimeInterval;
