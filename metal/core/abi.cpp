// The C entry points: look the device up, call it, turn failures into codes.
#include "rlv.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include "abi-hash.gen.h"
#include "device.h"
#include "guard.h"
#include "text.h"

namespace {

constexpr uint32_t kMaxDevices = 64;
// Other threads may still ask while the program ends.
rlv::Forever<std::mutex> g_mutex;
rlv::Forever<std::array<std::unique_ptr<rlv::Device>, kMaxDevices>> g_devices;
rlv::Forever<rlv::ErrorText> g_open_error;

rlv::Device* device_of(uint32_t handle) {
  std::lock_guard<std::mutex> lock(*g_mutex);
  return handle >= 1 && handle <= kMaxDevices ? (*g_devices)[handle - 1].get() : nullptr;
}

// f(device); `otherwise` if there is none, or if f throws: then the device has the error.
template <class R, class F>
R with_device(uint32_t handle, const char* where, R otherwise, F&& f) noexcept {
  rlv::Device* d = device_of(handle);
  if (!d) return otherwise;
  return rlv::guarded(
      where, otherwise, [d](const char* text) { d->fail(text); }, [&] { return f(*d); });
}

// For what has no memory to give, as when the system refuses it: nothing but `otherwise` is said.
template <class R, class F>
R with_device_quietly(uint32_t handle, R otherwise, F&& f) noexcept {
  rlv::Device* d = device_of(handle);
  if (!d) return otherwise;
  return rlv::guarded(
      "", otherwise, [](const char*) {}, [&] { return f(*d); });
}

void tell_open(std::string_view text) noexcept {
  std::lock_guard<std::mutex> lock(*g_mutex);
  g_open_error->set(text);
}

double peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
  return double(usage.ru_maxrss);
#else
  return double(usage.ru_maxrss) * 1024;
#endif
}

}  // namespace

extern "C" {

uint32_t rlv_abi_hash(char* out, uint32_t capacity) { return rlv::copy_text(RLV_ABI_HASH, out, capacity); }

uint32_t rlv_open(const char* name, uint32_t threads) {
  if (!name) return 0;
  char where[32];
  std::snprintf(where, sizeof where, "device %s", name);
  return rlv::guarded(where, 0u, tell_open, [&]() -> uint32_t {
    const std::string which = name;
    std::string error;
    std::unique_ptr<rlv::Device> device;
    if (which == "cpu") device = rlv::make_cpu_device(threads, error);
    if (which == "ref") device = rlv::make_ref_device();
    if (which == "null") device = rlv::make_null_device();
#if defined(RLV_METAL_DEVICE)
    if (which == RLV_METAL_DEVICE) device = rlv::make_metal_device(name, error);
#endif
    if (!device) {
      tell_open(error.empty() ? "no such device: " + which : error);
      return 0;
    }
    std::lock_guard<std::mutex> lock(*g_mutex);
    for (uint32_t i = 0; i < kMaxDevices; i++)
      if (!(*g_devices)[i]) {
        (*g_devices)[i] = std::move(device);
        return i + 1;
      }
    g_open_error->set("too many open devices");
    return 0;
  });
}

void rlv_close(uint32_t handle) {
  std::unique_ptr<rlv::Device> device;
  {
    std::lock_guard<std::mutex> lock(*g_mutex);
    if (handle >= 1 && handle <= kMaxDevices) device = std::move((*g_devices)[handle - 1]);
  }
  if (device) device->close();
}

uint32_t rlv_info(uint32_t handle, char* out, uint32_t capacity) {
  return with_device(handle, "[info]", 0u,
                     [&](rlv::Device& d) { return rlv::copy_text(d.info(), out, capacity); });
}

uint32_t rlv_buffer_new(uint32_t handle, uint32_t units, const char* label) {
  return with_device_quietly(handle, 0u,
                             [&](rlv::Device& d) { return d.buffer_new(units, label ? label : ""); });
}

uint32_t rlv_buffer_free(uint32_t handle, uint32_t buffer) {
  return with_device(handle, "[buffer_free]", false, [&](rlv::Device& d) { return d.buffer_free(buffer); })
             ? 0
             : 1;
}

uint32_t rlv_buffer_clear(uint32_t handle, uint32_t buffer) {
  return with_device(handle, "[buffer_clear]", false, [&](rlv::Device& d) { return d.buffer_clear(buffer); })
             ? 0
             : 1;
}

void* rlv_buffer_ptr(uint32_t handle, uint32_t buffer) {
  rlv::Device* d = device_of(handle);
  return d ? d->buffer_ptr(buffer) : nullptr;
}

uint32_t rlv_submit(uint32_t handle, const uint32_t* words, uint32_t count) {
  if (!words) return 0;
  return with_device(handle, "[submit]", 0u, [&](rlv::Device& d) { return d.submit(words, count); });
}

uint32_t rlv_wait(uint32_t handle, uint32_t ticket, uint32_t milliseconds) {
  rlv::Device* d = device_of(handle);
  return d ? d->wait(ticket, milliseconds) : 2;
}

// Device 0 asks why rlv_open failed.
uint32_t rlv_error(uint32_t handle, char* out, uint32_t capacity) {
  if (handle == 0) {
    std::lock_guard<std::mutex> lock(*g_mutex);
    return rlv::copy_text(g_open_error->view(), out, capacity);
  }
  rlv::Device* d = device_of(handle);
  return d ? d->take_error(out, capacity) : rlv::copy_text("no such device", out, capacity);
}

uint32_t rlv_stats(uint32_t handle, double* out, uint32_t capacity) {
  rlv::Device* d = device_of(handle);
  if (!d || !out) return 0;
  const uint32_t n = d->stats(out, capacity);
  if (n < capacity) {
    out[n] = peak_resident_bytes();
    return n + 1;
  }
  return n;
}

uint32_t rlv_profile(uint32_t handle, double* out, uint32_t capacity, uint32_t enable) {
  rlv::Device* d = device_of(handle);
  return d && (out || capacity == 0) ? d->profile(out, capacity, enable != 0) : 0;
}

double rlv_measure(uint32_t handle, uint32_t what, double seconds) {
  return with_device(handle, "[measure]", 0.0, [&](rlv::Device& d) { return d.measure(what, seconds); });
}

uint32_t rlv_ref_vjp(uint32_t handle, const uint32_t* record, uint32_t words, const uint32_t* cotangents,
                     const uint32_t* gradients) {
  if (!record || !cotangents || !gradients) return 1;
  return with_device(handle, "[ref_vjp]", 1u, [&](rlv::Device& d) -> uint32_t {
    if (std::strcmp(d.name(), "ref") != 0) {
      d.fail("[ref_vjp] only the ref device has complex-step gradients");
      return 1;
    }
    return rlv::ref_vjp(d, record, words, reinterpret_cast<const rlv_ref*>(cotangents),
                        reinterpret_cast<const rlv_ref*>(gradients))
               ? 0
               : 1;
  });
}

void rlv_fail_allocation(uint32_t n) { rlv::fail_allocation(n); }

uint32_t rlv_read_file(uint32_t handle, uint32_t buffer, uint32_t unit, int32_t fd, double offset,
                       double bytes) {
  // Doubles hold every whole number that a file's size can be.
  if (!(offset >= 0 && bytes >= 0 && offset + bytes < 9e15)) return 1;
  return with_device(handle, "[read_file]", 1u, [&](rlv::Device& d) -> uint32_t {
    uint64_t size = 0;
    char* base = static_cast<char*>(d.buffer_ptr(buffer, &size));
    uint64_t at = uint64_t(unit) * 16, left = uint64_t(bytes);
    if (!base || at + left > size) {
      d.fail("[read_file] the range does not fit the buffer");
      return 1;
    }
    off_t from = off_t(offset);
    while (left > 0) {
      const ssize_t n = pread(fd, base + at, std::min<uint64_t>(left, 1u << 30), from);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        d.fail(std::string("[read_file] ") + (n == 0 ? "the file ends early" : std::strerror(errno)));
        return 1;
      }
      at += uint64_t(n);
      from += n;
      left -= uint64_t(n);
    }
    return 0;
  });
}

uint32_t rlv_map_file(uint32_t handle, int32_t fd, double offset, double bytes, const char* label) {
  if (!(offset >= 0 && bytes > 0 && offset + bytes < 9e15)) return 0;
  return with_device_quietly(handle, 0u, [&](rlv::Device& d) {
    return d.map_file(fd, uint64_t(offset), uint64_t(bytes), label ? label : "");
  });
}

uint32_t rlv_fullsync(int32_t fd) {
#if defined(F_FULLFSYNC)
  if (fcntl(fd, F_FULLFSYNC) == 0) return 0;
#endif
  while (fsync(fd) != 0)
    if (errno != EINTR) return uint32_t(errno);
  return 0;
}

}  // extern "C"
