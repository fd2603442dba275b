// libFuzzer over command streams, to the CPU device and the null device; tests/torture/streams.test.ts builds
// and runs it.
#include "command_bytes.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Device cpu("cpu"), null("null");
  run(cpu, data, size);
  run(null, data, size);
  return 0;
}
