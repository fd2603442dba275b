// Stands in for the SDK's header.
#pragma once
typedef double CFTimeInterval;
