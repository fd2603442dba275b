// Stands in for the SDK's header: what metal-cpp uses of the Objective-C runtime. Bodies:
// metal/soft/objc.cpp.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

// metal-cpp asks for the processor by Apple's name.
#if defined(__aarch64__) && !defined(__arm64__)
#define __arm64__ 1
#endif

typedef struct objc_class* Class;
typedef struct objc_selector* SEL;
struct objc_object {
  Class isa;
};
typedef struct objc_object* id;
typedef struct objc_object Protocol;
typedef signed char BOOL;

extern "C" {
SEL sel_registerName(const char* name);
// Never null: metal-cpp looks classes up in static initialisers, before anyone could have made them.
Class objc_lookUpClass(const char* name);
Protocol* objc_getProtocol(const char* name);
}
