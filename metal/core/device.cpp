#include "device.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

namespace rlv {

static std::atomic<uint32_t> g_fail_allocation{0};
void fail_allocation(uint32_t n) { g_fail_allocation = n; }

bool allocation_fails() noexcept {
  uint32_t left = g_fail_allocation.load(std::memory_order_relaxed);
  while (left > 0 && !g_fail_allocation.compare_exchange_weak(left, left - 1)) {
  }
  return left == 1;
}

// Pages come zeroed and are backed on first touch, so a generous arena costs only what is used.
void* Device::allocate(uint64_t bytes) noexcept {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  if (p == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  if (bytes >= (4u << 20)) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return p;
}

void Device::release(void* p, uint64_t bytes) noexcept { munmap(p, bytes); }

void Device::clear(void* p, uint64_t bytes) {
#if defined(__linux__)
  if (madvise(p, bytes, MADV_DONTNEED) == 0) return;
#endif
  std::memset(p, 0, bytes);
}

uint32_t Device::buffer_new(uint32_t units, const char* label) {
  std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t bytes = uint64_t(units) * 16;
  // The handle first: what throws has nothing to give back.
  const uint32_t handle = handles_.add(nullptr, bytes, label);
  if (handle == 0) return 0;
  if (has_memory() && bytes > 0) {
    void* data = allocation_fails() ? nullptr : allocate(bytes);
    if (!data) {
      handles_.remove(handle);
      return 0;
    }
    handles_.find(handle)->data = data;
  }
  live_bytes_ += bytes;
  live_buffers_ += 1;
  peak_bytes_ = std::max(peak_bytes_, live_bytes_);
  return handle;
}

// Mapped bytes are the page cache's: they count as a buffer, not as live bytes.
uint32_t Device::map_file(int fd, uint64_t offset, uint64_t bytes, const char* label) {
#ifdef MADV_POPULATE_READ
  struct stat file;
  if (!maps_files() || fstat(fd, &file) != 0 || uint64_t(file.st_size) < offset + bytes) return 0;
  const uint64_t before = offset % uint64_t(sysconf(_SC_PAGESIZE)), mapped = before + bytes;
  std::lock_guard<std::mutex> lock(mutex_);
  const uint32_t handle = handles_.add(nullptr, (bytes + 15) / 16 * 16, label);
  if (handle == 0) return 0;
  void* pages = mmap(nullptr, mapped, PROT_READ, MAP_SHARED, fd, off_t(offset - before));
  if (pages != MAP_FAILED && madvise(pages, mapped, MADV_POPULATE_READ) == 0) {
    BufferSlot* s = handles_.find(handle);
    s->data = static_cast<char*>(pages) + before;
    s->pages = pages;
    s->page_bytes = mapped;
    live_buffers_ += 1;
    return handle;
  }
  if (pages != MAP_FAILED) munmap(pages, mapped);
  handles_.remove(handle);
#else
  (void)fd, (void)offset, (void)bytes, (void)label;
#endif
  return 0;
}

void Device::release_slot(BufferSlot& s) noexcept {
  if (s.pages) {
    munmap(s.pages, s.page_bytes);
  } else {
    if (s.data) release(s.data, s.bytes);
    live_bytes_ -= s.bytes;
  }
  live_buffers_ -= 1;
}

bool Device::buffer_free(uint32_t handle) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!handles_.find(handle)) {
      fail_locked("[buffer_free] " + handles_.describe(handle));
      return false;
    }
  }
  wait(next_ticket_ - 1, 0xffffffffu);
  std::lock_guard<std::mutex> lock(mutex_);
  release_slot(*handles_.find(handle));
  handles_.remove(handle);
  return true;
}

void Device::close() {
  wait(next_ticket_ - 1, 0xffffffffu);
  std::lock_guard<std::mutex> lock(mutex_);
  handles_.each([this](BufferSlot& s) { release_slot(s); });
}

bool Device::buffer_clear(uint32_t handle) {
  wait(next_ticket_ - 1, 0xffffffffu);
  std::lock_guard<std::mutex> lock(mutex_);
  BufferSlot* s = handles_.find(handle);
  if (!s || s->pages) {
    fail_locked("[buffer_clear] '" + handles_.describe(handle) + "'" +
                (s ? " is a mapped file: it can only be read" : ""));
    return false;
  }
  if (s->data) clear(s->data, s->bytes);
  return true;
}

void* Device::buffer_ptr(uint32_t handle, uint64_t* bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  BufferSlot* s = handles_.find(handle);
  if (s && s->pages) s = nullptr;
  if (bytes) *bytes = s ? s->bytes : 0;
  return s ? s->data : nullptr;
}

void Device::fail(std::string_view text) noexcept {
  std::lock_guard<std::mutex> lock(mutex_);
  fail_locked(text);
}

void Device::fail_locked(std::string_view text) noexcept {
  if (failed_) return;
  error_.set(text);
  failed_.store(true, std::memory_order_release);
  done_.notify_all();
}

uint32_t Device::take_error(char* out, uint32_t capacity) {
  wait(next_ticket_ - 1, 0xffffffffu);
  std::lock_guard<std::mutex> lock(mutex_);
  const uint32_t length = copy_text(error_.view(), out, capacity);
  error_.clear();
  failed_ = false;
  return length;
}

// The caller holds mutex_.
bool Device::resolve(const uint32_t* record, uint32_t id, void** pointers) {
  const OpInfo& op = op_info(id);
  const auto* refs = reinterpret_cast<const rlv_ref*>(record);
  auto reject = [&](int field, const std::string& why) {
    fail_locked(std::string("[") + op.name + "] " + (field >= 0 ? op.field[field].name : "record") + ": " +
                why);
    return false;
  };
  for (int i = 0; i < op.tensors; i++) {
    pointers[i] = nullptr;
    if (refs[i].buffer == 0) continue;
    BufferSlot* s = handles_.find(refs[i].buffer);
    if (!s) return reject(i, handles_.describe(refs[i].buffer));
    const uint64_t begin = uint64_t(refs[i].offset) * 16, bytes = uint64_t(refs[i].length) * 16;
    if (begin + bytes > s->bytes)
      return reject(i, "range [" + std::to_string(begin) + ", " + std::to_string(begin + bytes) +
                           ") beyond '" + s->label + "' of " + std::to_string(s->bytes) + " bytes");
    if (s->pages && (op.field[i].access & kWrite))
      return reject(i, "'" + s->label + "' is a mapped file: it can only be read");
    if (s->data) pointers[i] = static_cast<char*>(s->data) + begin;
  }
  const int bad = op.check(record);
  if (bad < 0) return true;
  if (bad >= kZero) return reject(-1, std::string(op.param[bad - kZero].name) + " is 0");
  if (bad == kBadDtype) return reject(-1, "unknown dtype");
  if (refs[bad].buffer != 0)
    return reject(bad, "'" + handles_.describe(refs[bad].buffer) + "' gives " +
                           std::to_string(bytes_of(refs[bad])) + " bytes, fewer than the shape needs");
  const char* beside = op.field[bad].beside;
  return reject(bad, beside ? std::string("missing, and there is ") + beside : "missing");
}

bool Device::decode(const uint32_t* words, uint32_t count, Program& program) {
  uint32_t at = 0;
  while (at < count) {
    const uint32_t id = words[at] & 0xffffu, length = words[at] >> 16;
    if (id == 0 || id >= RLV_OP_COUNT || length != 1 + op_info(id).record_bytes / 4 || at + length > count) {
      fail_locked("[submit] malformed record at word " + std::to_string(at) + ": operation " +
                  std::to_string(id) + ", " + std::to_string(length) + " words");
      return false;
    }
    const OpInfo& op = op_info(id);
    const uint32_t* record = words + at + 1;
    void* pointers[kMaxTensors];
    if (!resolve(record, id, pointers)) return false;

    const uint32_t args = uint32_t(program.args.size());
    program.args.resize(args + (op.args_bytes + 7) / 8);
    op.resolve(record, pointers, program.args.data() + args);
    const RowSplit rows = row_split(id, program.args.data() + args);

    ByteRange ranges[kMaxTensors];
    int n = 0;
    double bytes = 0;
    const auto* refs = reinterpret_cast<const rlv_ref*>(record);
    for (int i = 0; i < op.tensors; i++) {
      if (refs[i].buffer == 0) continue;
      const uint64_t begin = uint64_t(refs[i].offset) * 16;
      ByteRange range{refs[i].buffer, begin, begin + bytes_of(refs[i]), op.field[i].access};
      if (rows.fields >> i & 1) {
        range.rows = rows.rows;
        range.layout = range.access == kScratch ? id : 0;
      }
      if (rows.paged >> i & 1) {
        range.rows = rows.sequences;
        range.layout = RLV_NONE;
      }
      ranges[n++] = range;
      bytes += double(bytes_of(refs[i]));
    }
    const bool barrier = hazards_.conflicts(ranges, n);
    if (barrier) hazards_.clear();
    hazards_.note(ranges, n);

    const double flops = op.flops(record);
    Step step{
        id,    args,         uint32_t(program.records.size()), uint32_t(program.pointers.size()), barrier,
        flops, double(bytes)};
    program.records.insert(program.records.end(), record, record + length - 1);
    program.pointers.insert(program.pointers.end(), pointers, pointers + op.tensors);
    program.steps.push_back(step);
    ops_ += 1;
    flops_ += flops;
    bytes_ += bytes;
    if (profiling_) {
      std::lock_guard<std::mutex> lock(profile_mutex_);
      profile_[id].calls += 1;
      profile_[id].flops += flops;
      profile_[id].bytes += bytes;
    }
    at += length;
  }
  return true;
}

uint32_t Device::submit(const uint32_t* words, uint32_t count) {
  auto program = std::make_unique<Program>();
  uint32_t ticket;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failed_) return 0;
    // Programs are separated by a full barrier of the executor.
    hazards_.clear();
    if (!decode(words, count, *program)) return 0;
    ticket = program->ticket = next_ticket_++;
  }
  try {
    enqueue(std::move(program));
  } catch (...) {
    // Nobody will complete it.
    std::lock_guard<std::mutex> lock(mutex_);
    next_ticket_ -= 1;
    throw;
  }
  return ticket;
}

void Device::complete(uint32_t ticket) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (int32_t(ticket - completed_.load()) > 0) completed_.store(ticket, std::memory_order_release);
  batches_ += 1;
  done_.notify_all();
}

std::string describe_operation(uint32_t id, const uint32_t* record) {
  const OpInfo& op = op_info(id);
  std::string text = op.name;
  for (int i = 0; i < op.params; i++) {
    const uint32_t word = record[3 * op.tensors + i];
    float real;
    std::memcpy(&real, &word, 4);
    char value[32];
    if (op.param[i].is_float)
      std::snprintf(value, sizeof value, "%g", double(real));
    else
      std::snprintf(value, sizeof value, "%u", word);
    text += std::string(" ") + op.param[i].name + "=" + value;
  }
  return text;
}

// A short spin first: a decode step of a tiny model ends within microseconds.
uint32_t Device::wait(uint32_t ticket, uint32_t milliseconds) {
  auto done = [&] { return int32_t(completed_.load(std::memory_order_acquire) - ticket) >= 0; };
  for (int i = 0; i < 200 && !done(); i++) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  if (!done()) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (milliseconds == 0xffffffffu)
      done_.wait(lock, done);
    else if (!done_.wait_for(lock, std::chrono::milliseconds(milliseconds), done))
      return failed_ ? 2 : 1;
  }
  return failed_ ? 2 : 0;
}

uint32_t Device::profile(double* out, uint32_t capacity, bool enable) {
  std::lock_guard<std::mutex> lock(profile_mutex_);
  const uint32_t n = std::min<uint32_t>(capacity / 4, RLV_OP_COUNT);
  for (uint32_t i = 0; i < n; i++) {
    const OpProfile& p = profile_[i];
    const double row[4] = {p.calls, p.ns, p.flops, p.bytes};
    std::memcpy(out + 4 * i, row, sizeof row);
  }
  if (enable && !profiling_) std::fill(profile_.begin(), profile_.end(), OpProfile{});
  profiling_ = enable;
  return n;
}

uint32_t Device::stats(double* out, uint32_t capacity) {
  std::lock_guard<std::mutex> lock(mutex_);
  const double values[9] = {double(live_bytes_),
                            double(live_buffers_),
                            double(peak_bytes_),
                            ops_,
                            double(batches_),
                            double(barriers_),
                            flops_,
                            bytes_,
                            double(scratch_bytes())};
  const uint32_t n = std::min<uint32_t>(capacity, 9);
  std::memcpy(out, values, n * sizeof(double));
  return n;
}

}  // namespace rlv
