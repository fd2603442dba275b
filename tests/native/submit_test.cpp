// Command streams by chance, on the CPU device and the null device: PROGRAM [CASES [SEED [FOLDER]]]. Case i
// of a seed is case 0 of seed + i. With a folder they are written there, a file each, for
// tests/native/stream_fuzzer.
#include <fstream>
#include <random>
#include "command_bytes.h"

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 4000;
  const uint32_t seed = argc > 2 ? uint32_t(std::atol(argv[2])) : 1;
  Device cpu("cpu"), null("null");
  std::vector<uint8_t> input;
  for (int i = 0; i < cases; i++) {
    std::mt19937 random(seed + uint32_t(i));
    input.resize(8 + random() % 300);
    for (uint8_t& byte : input) byte = uint8_t(random());
    if (argc > 3) {
      std::ofstream(std::string(argv[3]) + "/" + std::to_string(i), std::ios::binary)
          .write(reinterpret_cast<const char*>(input.data()), std::streamsize(input.size()));
      continue;
    }
    run(cpu, input.data(), input.size());
    run(null, input.data(), input.size());
  }
  std::printf("%d streams, %u accepted\n1 passed, 0 failed\n", cases, accepted);
}
