// Processes on one or several machines that train together: bytes of every rank to all, and sums over ranks.
// One exchange at a time; rlv_mpi_wait drives it, so that whoever waits can look after signals in between.
#include <dlfcn.h>
#include <sched.h>
#include <time.h>
#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <vector>
#include "../core/guard.h"
#include "../core/text.h"
#include "mpi_calls.h"
#include "rlv.h"

namespace {

using Bytes = unsigned char;

constexpr int kGather = 1, kPart = 2, kSum = 3;
// MPI counts in int; pieces of a long message follow each other.
constexpr uint64_t kPiece = 1u << 28;
// Elements whose sum is under way at once: bounds the memory for what others send.
constexpr uint64_t kBucket = 1u << 21;
constexpr uint64_t kSliceAlign = 16;

// MPI may still be called while the program ends.
rlv::Forever<std::unique_ptr<rlv::Mpi>> g_mpi_place;
std::unique_ptr<rlv::Mpi>& g_mpi = *g_mpi_place;
rlv::Forever<std::string> g_library;
rlv::Forever<rlv::ErrorText> g_error;
bool g_started = false;

bool fail(std::string_view text) noexcept {
  g_error->set(text);
  return false;
}

// f(); `failed`, with the error told, if it throws.
template <class F>
uint32_t guarded(const char* where, uint32_t failed, F&& f) noexcept {
  return rlv::guarded(where, failed, fail, f);
}

// What is under way: messages, and what follows when all of them have arrived.
class Exchange {
 public:
  virtual ~Exchange() = default;
  // Posts the next messages. False on an error; nothing pending afterwards: the exchange is done.
  virtual bool next(rlv::Mpi& mpi) = 0;
};

class Gather : public Exchange {
 public:
  Gather(const Bytes* mine, const uint32_t* sizes, uint32_t rank, uint32_t ranks)
      : sizes_(sizes, sizes + ranks) {
    offsets_.resize(ranks + 1, 0);
    for (uint32_t r = 0; r < ranks; r++) offsets_[r + 1] = offsets_[r] + sizes[r];
    all.resize(offsets_[ranks]);
    if (sizes[rank] > 0) std::memcpy(all.data() + offsets_[rank], mine, sizes[rank]);
  }

  bool next(rlv::Mpi& mpi) override {
    if (posted_) return true;
    posted_ = true;
    const uint32_t me = mpi.rank;
    for (uint32_t step = 1; step < mpi.ranks; step++) {
      // Not everybody turns to rank 0 first.
      const uint32_t to = (me + step) % mpi.ranks, from = (me + mpi.ranks - step) % mpi.ranks;
      for (uint64_t at = 0; at < sizes_[from]; at += kPiece) {
        const uint32_t n = uint32_t(std::min<uint64_t>(kPiece, sizes_[from] - at));
        if (!mpi.receive(all.data() + offsets_[from] + at, n, from, kGather)) return fail(mpi.error);
      }
      for (uint64_t at = 0; at < sizes_[me]; at += kPiece) {
        const uint32_t n = uint32_t(std::min<uint64_t>(kPiece, sizes_[me] - at));
        if (!mpi.send(all.data() + offsets_[me] + at, n, to, kGather)) return fail(mpi.error);
      }
    }
    return true;
  }

  std::vector<Bytes> all;

 private:
  std::vector<uint64_t> sizes_, offsets_;
  bool posted_ = false;
};

struct Float {
  using Stored = float;
  static float read(float v) { return v; }
  static float write(float v) { return v; }
};

struct Bfloat {
  using Stored = uint16_t;
  static float read(uint16_t v) {
    const uint32_t bits = uint32_t(v) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  // To nearest, ties to even; NaN stays NaN.
  static uint16_t write(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return uint16_t((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
  }
};

// Every rank sums the slice of a bucket that is its own, in float32 and in the order of the ranks, and gives
// the sum to all: the bits are the same on every rank and in every run. The sums of one bucket travel
// together with the parts of the next.
template <class Type>
class Sum : public Exchange {
  using Stored = typename Type::Stored;

 public:
  Sum(Stored* values, uint64_t count, uint32_t ranks) : values_(values), count_(count) {
    const uint64_t largest = std::min(kBucket, count);
    staging_.resize(size_t(slice(largest, ranks) * ranks));
  }

  bool next(rlv::Mpi& mpi) override {
    if (begin_ < end_) add(mpi);
    const uint64_t summed_begin = begin_, summed_end = end_;
    begin_ = end_;
    end_ = std::min(count_, begin_ + kBucket);
    return give(mpi, summed_begin, summed_end) && collect(mpi);
  }

 private:
  static uint64_t slice(uint64_t n, uint32_t ranks) {
    return ((n + ranks - 1) / ranks + kSliceAlign - 1) / kSliceAlign * kSliceAlign;
  }
  struct Range {
    uint64_t begin, end;
    uint32_t bytes() const { return uint32_t((end - begin) * sizeof(Stored)); }
  };
  // What rank r sums of the elements [begin, end).
  static Range owned(uint64_t begin, uint64_t end, uint32_t r, uint32_t ranks) {
    const uint64_t s = slice(end - begin, ranks);
    return {std::min(end, begin + r * s), std::min(end, begin + (r + 1) * s)};
  }

  bool collect(rlv::Mpi& mpi) {
    const Range mine = owned(begin_, end_, mpi.rank, mpi.ranks);
    const uint64_t s = slice(end_ - begin_, mpi.ranks);
    for (uint32_t r = 0; r < mpi.ranks; r++) {
      if (r == mpi.rank) continue;
      const Range theirs = owned(begin_, end_, r, mpi.ranks);
      if (mine.bytes() > 0 && !mpi.receive(staging_.data() + r * s, mine.bytes(), r, kPart))
        return fail(mpi.error);
      if (theirs.bytes() > 0 && !mpi.send(values_ + theirs.begin, theirs.bytes(), r, kPart))
        return fail(mpi.error);
    }
    return true;
  }

  void add(rlv::Mpi& mpi) {
    const Range mine = owned(begin_, end_, mpi.rank, mpi.ranks);
    const uint64_t s = slice(end_ - begin_, mpi.ranks), n = mine.end - mine.begin;
    Stored* own = values_ + mine.begin;
    std::vector<const Stored*> parts(mpi.ranks);
    for (uint32_t r = 0; r < mpi.ranks; r++) parts[r] = r == mpi.rank ? own : staging_.data() + r * s;
    // Short runs stay in the cache while rank after rank is added.
    constexpr uint64_t kRun = 512;
    float sum[kRun];
    for (uint64_t at = 0; at < n; at += kRun) {
      const uint64_t run = std::min(kRun, n - at);
      const Stored* first = parts[0] + at;
      for (uint64_t i = 0; i < run; i++) sum[i] = Type::read(first[i]);
      for (uint32_t r = 1; r < mpi.ranks; r++) {
        const Stored* part = parts[r] + at;
        for (uint64_t i = 0; i < run; i++) sum[i] += Type::read(part[i]);
      }
      Stored* out = own + at;
      for (uint64_t i = 0; i < run; i++) out[i] = Type::write(sum[i]);
    }
  }

  bool give(rlv::Mpi& mpi, uint64_t begin, uint64_t end) {
    const Range mine = owned(begin, end, mpi.rank, mpi.ranks);
    for (uint32_t r = 0; r < mpi.ranks; r++) {
      if (r == mpi.rank) continue;
      const Range theirs = owned(begin, end, r, mpi.ranks);
      if (theirs.bytes() > 0 && !mpi.receive(values_ + theirs.begin, theirs.bytes(), r, kSum))
        return fail(mpi.error);
      if (mine.bytes() > 0 && !mpi.send(values_ + mine.begin, mine.bytes(), r, kSum)) return fail(mpi.error);
    }
    return true;
  }

  Stored* values_;
  uint64_t count_, begin_ = 0, end_ = 0;
  std::vector<Stored> staging_;
};

rlv::Forever<std::unique_ptr<Exchange>> g_exchange_place;
std::unique_ptr<Exchange>& g_exchange = *g_exchange_place;
Gather* g_gathered = nullptr;  // the exchange, if it is a finished gather
bool g_done = true;
using Clock = std::chrono::steady_clock;
Clock::time_point g_moved;  // when a message last arrived or left
// An exchange failed, maybe between its messages: there is no going on.
bool g_broken = false;

bool idle() {
  if (!g_started) return fail("MPI is not started");
  return g_done || fail(g_broken ? "an exchange has failed" : "an exchange is under way");
}

bool begin(std::unique_ptr<Exchange> exchange, Gather* gather) {
  g_exchange = std::move(exchange);
  g_gathered = gather;
  g_done = false;
  g_moved = Clock::now();
  g_broken = true;
  g_broken = !g_exchange->next(*g_mpi);
  return !g_broken;
}

void rest(Clock::duration idle) {
  // A message between processes of one machine takes microseconds; a rank that is late takes long. Whoever
  // yields to threads that compute waits for their whole turn, so that comes to an end by the clock: who
  // wakes up is let in.
  if (idle < std::chrono::milliseconds(1)) {
    sched_yield();
    return;
  }
  const long us = idle < std::chrono::milliseconds(200) ? 20 : 500;
  timespec pause{0, us * 1000};
  nanosleep(&pause, nullptr);
}

// Drives the exchange; see rlv_mpi_wait.
uint32_t drive(uint32_t milliseconds) {
  const auto end = Clock::now() + std::chrono::milliseconds(milliseconds);
  for (;;) {
    uint32_t completed = 0;
    if (!g_mpi->poll(completed)) return fail(g_mpi->error), 2;
    if (g_mpi->pending() == 0) {
      if (!g_exchange->next(*g_mpi)) return 2;
      if (g_mpi->pending() == 0) {
        g_done = true;
        if (!g_gathered) g_exchange.reset();
        return 0;
      }
      completed = 1;
    }
    const auto now = Clock::now();
    if (completed > 0) {
      g_moved = now;
      continue;
    }
    if (now >= end) return 1;
    rest(now - g_moved);
  }
}

struct Close {
  void operator()(void* library) const { dlclose(library); }
};

bool load(const char* names, uint32_t bytes) {
  std::string reasons;
  for (const char* name = names; name < names + bytes; name += std::strlen(name) + 1) {
    // Open MPI's own plugins look for its symbols among the global ones.
    std::unique_ptr<void, Close> library(dlopen(name, RTLD_NOW | RTLD_GLOBAL));
    std::string reason;
    if (library) {
      std::string own = name;
      g_mpi = rlv::find_mpi(library.get(), reason);
      if (g_mpi) {
        g_library->swap(own);
        library.release();
        return true;
      }
      reason = own + ": " + reason;
    } else {
      const char* text = dlerror();
      reason = text ? text : name;
    }
    reasons += (reasons.empty() ? "" : "; ") + reason;
  }
  return fail(reasons);
}

}  // namespace

extern "C" {

uint32_t rlv_mpi_load(const char* names, uint32_t bytes) {
  if (g_mpi) return 0;
  if (!names || bytes == 0 || names[bytes - 1] != 0) return fail("no name of a library"), 1;
  return guarded("loading MPI", 1, [&] { return load(names, bytes) ? 0 : 1; });
}

uint32_t rlv_mpi_info(char* out, uint32_t capacity) {
  if (!g_mpi) return 0;
  return guarded("[mpi_info]", 0, [&] {
    return rlv::copy_text(*g_library + "\n" + g_mpi->kind + "\n" + g_mpi->version, out, capacity);
  });
}

uint32_t rlv_mpi_start(uint32_t* out, uint32_t capacity) {
  if (!out || capacity < 2) return fail("no place for rank and size"), 1;
  if (!g_mpi) return fail("no MPI library is loaded"), 1;
  return guarded("MPI_Init_thread", 1, [&] {
    if (!g_started && !g_mpi->start()) return fail(g_mpi->error), 1;
    g_started = true;
    out[0] = g_mpi->rank;
    out[1] = g_mpi->ranks;
    return 0;
  });
}

uint32_t rlv_mpi_gather(const void* mine, uint32_t bytes, const uint32_t* sizes, uint32_t ranks) {
  if (!idle()) return 1;
  if (!sizes || ranks != g_mpi->ranks) return fail("one size a rank"), 1;
  if (sizes[g_mpi->rank] != bytes || (bytes > 0 && !mine)) return fail("not the bytes that were said"), 1;
  uint64_t total = 0;
  for (uint32_t r = 0; r < ranks; r++) total += sizes[r];
  if (total > UINT32_MAX) return fail("more than 4 GiB to gather"), 1;
  return guarded("giving to all ranks", 1, [&] {
    auto gather = std::make_unique<Gather>(static_cast<const Bytes*>(mine), sizes, g_mpi->rank, ranks);
    Gather* raw = gather.get();
    return begin(std::move(gather), raw) ? 0 : 1;
  });
}

uint32_t rlv_mpi_take(void* out, uint32_t offset, uint32_t bytes) {
  if (!g_done || !g_gathered) return fail("nothing was gathered"), 1;
  const std::vector<Bytes>& all = g_gathered->all;
  if (uint64_t(offset) + bytes > all.size()) return fail("more than was gathered"), 1;
  if (bytes > 0) std::memcpy(out, all.data() + offset, bytes);
  return 0;
}

uint32_t rlv_mpi_sum(void* values, uint32_t bytes, uint32_t dtype) {
  if (!idle()) return 1;
  if (dtype != RLV_F32 && dtype != RLV_BF16) return fail("sums are of float32 or bfloat16"), 1;
  const uint32_t size = dtype == RLV_F32 ? 4 : 2;
  if (!values || bytes % size != 0 || reinterpret_cast<uintptr_t>(values) % size != 0)
    return fail("not a range of whole elements"), 1;
  return guarded("summing over ranks", 1, [&] {
    std::unique_ptr<Exchange> sum;
    if (dtype == RLV_F32)
      sum = std::make_unique<Sum<Float>>(static_cast<float*>(values), bytes / 4, g_mpi->ranks);
    else
      sum = std::make_unique<Sum<Bfloat>>(static_cast<uint16_t*>(values), bytes / 2, g_mpi->ranks);
    return begin(std::move(sum), nullptr) ? 0 : 1;
  });
}

uint32_t rlv_mpi_wait(uint32_t milliseconds) {
  if (g_done) return 0;
  if (g_broken) return 2;
  const uint32_t state = guarded("exchanging with ranks", 2, [&] { return drive(milliseconds); });
  g_broken = state == 2;
  return state;
}

uint32_t rlv_mpi_error(char* out, uint32_t capacity) {
  return rlv::copy_text(g_error->view(), out, capacity);
}

void rlv_mpi_abort(uint32_t code) {
  if (g_started) g_mpi->abort(code);
}

uint32_t rlv_mpi_stop(void) {
  if (!g_started) return 0;
  if (!idle()) return 1;
  g_started = false;
  return guarded("MPI_Finalize", 1, [] { return g_mpi->finish() ? 0 : (fail(g_mpi->error), 1); });
}

}  // extern "C"
