// Any bytes as a command stream: refused with an error or run. Most fields are shaped towards what passes the
// checks: small sizes, ranges within the buffers, known dtypes. Buffers lie between pages that nobody may
// touch.
#pragma once
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#include "../../metal/core/device.h"
#include "rlv.h"

namespace {

#if defined(__linux__)
constexpr size_t kGuard = 4096;

void* between_guards(size_t bytes) {
  auto* pages = reinterpret_cast<char*>(
      syscall(SYS_mmap, nullptr, bytes + 2 * kGuard, PROT_NONE, MAP_PRIVATE | MAP_ANON, -1, 0));
  if (pages == MAP_FAILED) return MAP_FAILED;
  syscall(SYS_mprotect, pages + kGuard, bytes, PROT_READ | PROT_WRITE);
  return pages + kGuard;
}
#endif

constexpr uint32_t kUnits = 1024, kBuffers = 4;
uint32_t accepted = 0;

struct Device {
  uint32_t handle;
  uint32_t buffers[kBuffers + 1];
  explicit Device(const char* name) : handle(rlv_open(name, 1)) {
    for (uint32_t i = 0; i <= kBuffers; i++) buffers[i] = rlv_buffer_new(handle, kUnits, "fuzzed");
    rlv_buffer_free(handle, buffers[kBuffers]);  // stays stale
  }
};

// Bytes of the input one after another, zeros behind its end.
struct Reader {
  const uint8_t* data;
  size_t size, at = 0;
  bool more() const { return at < size; }
  uint32_t byte() { return at < size ? data[at++] : 0; }
  uint32_t word() {
    uint32_t w = byte();
    for (int i = 1; i < 4; i++) w |= byte() << 8 * i;
    return w;
  }
};

uint32_t number(Reader& in) {
  const uint32_t kind = in.byte();
  if (kind < 40) return in.byte() & 1;
  if (kind < 140) return in.byte() & 15;
  if (kind < 200) return 16 * (1 + (in.byte() & 7));
  if (kind < 230) return in.byte();
  if (kind < 240) return RLV_NONE;
  return in.word();
}

void append(std::vector<uint32_t>& words, Reader& in, const Device& device) {
  const uint32_t id = 1 + in.byte() % (RLV_OP_COUNT - 1);
  const rlv::OpInfo& op = rlv::op_info(id);
  const uint32_t length = 1 + op.record_bytes / 4;
  const uint32_t odd = in.byte();
  const size_t begin = words.size();
  words.push_back((odd == 255 ? in.word() & 0xffffu : id) | (odd == 254 ? in.byte() : length) << 16);
  for (int i = 0; i < op.tensors; i++) {
    const uint32_t kind = in.byte();
    const uint32_t buffer = kind < 20    ? 0
                            : kind < 24  ? device.buffers[kBuffers]
                            : kind == 24 ? in.word()
                                         : device.buffers[kind % kBuffers];
    const uint32_t offset = kind == 25 ? in.word() : kind < 200 ? 0 : in.byte();
    const uint32_t size = kind == 26 ? in.word() : kind & 1 ? kUnits - (offset & 1023) : in.byte();
    words.insert(words.end(), {buffer, offset, size});
  }
  for (int i = 0; i < op.params; i++) words.push_back(op.param[i].is_float ? in.word() : number(in));
  while (words.size() - begin < length) words.push_back(number(in));
}

void run(Device& device, const uint8_t* data, size_t size) {
  Reader in{data, size};
  // Indices among the operands are what the input says, too.
  for (uint32_t i = 0; i < kBuffers; i++) {
    auto* values = static_cast<uint32_t*>(rlv_buffer_ptr(device.handle, device.buffers[i]));
    if (!values) continue;
    const uint32_t mask = in.byte();
    for (uint32_t k = 0; k < kUnits * 4; k++) values[k] = i == 3 ? in.word() : (k * 2654435761u >> 7) & mask;
    if (i == 3) break;
  }
  in.at = size < 8 ? 0 : 8;
  std::vector<uint32_t> words;
  for (int records = 0; in.more() && records < 8; records++) append(words, in, device);
  const uint32_t ticket = rlv_submit(device.handle, words.data(), uint32_t(words.size()));
  if (ticket != 0) {
    accepted++;
    while (rlv_wait(device.handle, ticket, 1000) == 1) {
    }
  }
  char text[512];
  const uint32_t told = rlv_error(device.handle, text, sizeof text);
  // What is refused is told.
  if (ticket == 0 && told == 0 && !words.empty()) std::abort();
}

}  // namespace

#if defined(__linux__)
// Only the memory of buffers is asked for in this size.
extern "C" void* mmap(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (bytes == kUnits * 16 && fd == -1) return between_guards(bytes);
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, bytes, protection, flags, fd, offset));
}
#endif
