// Every allocation of the native library fails in turn, and every start of a thread: alone, then with all
// that follow it. Each time an error is told, nothing is left behind, and the same device, where there is
// one, and a new one compute the same bits. Operations of every kind, sized by the checks of their own
// records. With the path of tests/dist/fake-mpi.c's library, those of exchanges between ranks instead.
#if defined(__linux__)
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#endif
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <set>
#include <string>
#include <vector>
#include "../../metal/core/device.h"
#include "rlv.h"

namespace {

// How many allocations until one fails, 0: none does; whether those behind it fail too.
std::atomic<long> countdown{0};
std::atomic<bool> lasting{false}, exhausted{false};
std::atomic<long> live{0};
// Smaller ones are always made.
std::atomic<size_t> smallest{0};

bool refused(size_t bytes) {
  if (bytes < smallest) return false;
  if (exhausted) return true;
  if (countdown.load() <= 0 || countdown.fetch_sub(1) != 1) return false;
  exhausted = lasting.load();
  return true;
}

void* counted(void* p) {
  if (p) live++;
  return p;
}

void* take(size_t bytes, size_t alignment) {
  if (refused(bytes)) throw std::bad_alloc();
  void* p = alignment > 16 ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
                           : std::malloc(bytes > 0 ? bytes : 1);
  if (!p) throw std::bad_alloc();
  return counted(p);
}

void give(void* p) {
  if (p) live--;
  std::free(p);
}

}  // namespace

void* operator new(size_t n) { return take(n, 0); }
void* operator new(size_t n, std::align_val_t a) { return take(n, size_t(a)); }
void operator delete(void* p) noexcept { give(p); }
void operator delete(void* p, size_t) noexcept { give(p); }
void operator delete(void* p, std::align_val_t) noexcept { give(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { give(p); }

#if defined(__linux__)
// Of this program alone, not of a sanitizer's runtime.
extern "C" void* mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset) noexcept {
  if (refused(bytes)) return errno = ENOMEM, MAP_FAILED;
  void* p = reinterpret_cast<void*>(syscall(SYS_mmap, at, bytes, protection, flags, fd, offset));
  if (p != MAP_FAILED) live++;
  return p;
}
extern "C" int munmap(void* at, size_t bytes) noexcept {
  live--;
  return int(syscall(SYS_munmap, at, bytes));
}
// For libstdc++ too, where that is a library of its own.
extern "C" __attribute__((visibility("default"))) int pthread_create(pthread_t* thread,
                                                                     const pthread_attr_t* attributes,
                                                                     void* (*run)(void*),
                                                                     void* argument) noexcept {
  static const auto real = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return refused(0) ? EAGAIN : real(thread, attributes, run, argument);
}
#endif

namespace {

int g_passed = 0, g_failed = 0;
void check(bool ok, const std::string& what) {
  ok ? g_passed++ : g_failed++;
  if (!ok) std::printf("FAIL %s\n", what.c_str());
}

constexpr uint32_t kBuffers = 4;

// Records of one kind of element, the buffers they name by 1 + place, and what these hold at first.
struct Work {
  std::vector<std::vector<uint32_t>> batches;
  std::vector<uint32_t> contents[kBuffers];
};

const std::map<std::string, uint32_t> kWords = {
    {"rows", 5},   {"cols", 64},     {"vocab", 520}, {"heads", 4},     {"kv_heads", 2},  {"head_dim", 16},
    {"m", 5},      {"n", 33},        {"k", 256},     {"r", 8},         {"split", 4},     {"accumulate", 1},
    {"n_segs", 1}, {"max_pos", 64},  {"n_pages", 1}, {"kv_pages", 16}, {"max_pages", 2}, {"pairs", 15},
    {"batch", 5},  {"src_rows", 5},  {"count", 2},   {"top_k", 7},     {"slots", 4},     {"nq", 64},
    {"nkv", 32},   {"threshold", 9}, {"qt", RLV_NF4}};
const std::map<std::string, float> kFloats = {
    {"lr", 1e-3f},   {"beta1", 0.9f},  {"beta2", 0.99f}, {"eps", 1e-6f},  {"c1", 0.1f},   {"c2", 0.1f},
    {"scale", 0.1f}, {"scale2", 0.1f}, {"inv_temp", 1},  {"top_p", 0.9f}, {"max_norm", 1}};
const std::set<std::string> kIndices = {"ids",  "targets", "index",    "positions", "slots", "table",
                                        "lens", "pages",   "counters", "routes",    "pairs", "segs"};

void append(Work& work, uint32_t id, uint32_t dt) {
  const rlv::OpInfo& op = rlv::op_info(id);
  std::vector<uint32_t> record(op.record_bytes / 4, 0);
  auto* refs = reinterpret_cast<rlv_ref*>(record.data());
  for (int i = 0; i < op.params; i++) {
    uint32_t& word = record[3 * op.tensors + i];
    const std::string name = op.param[i].name;
    if (op.param[i].is_float) {
      const auto it = kFloats.find(name);
      if (it != kFloats.end()) std::memcpy(&word, &it->second, 4);
    } else if (name.size() > 1 && name.substr(name.size() - 2) == "dt") {
      word = dt;
    } else {
      const auto it = kWords.find(name);
      if (it != kWords.end()) word = it->second;
    }
  }
  for (int i = 0; i < op.tensors; i++) refs[i] = {1, 0, 0};
  for (int bad = op.check(record.data()); bad >= 0; bad = op.check(record.data())) {
    if (bad >= op.tensors) return check(false, std::string("the parameters of ") + op.name);
    refs[bad].length += 1 + refs[bad].length / 8;
  }
  for (int i = 0; i < op.tensors; i++) {
    const std::string name = op.field[i].name;
    std::vector<uint32_t>& to = work.contents[(id + uint32_t(i)) % kBuffers];
    refs[i].buffer = 1 + (id + uint32_t(i)) % kBuffers;
    refs[i].offset = uint32_t(to.size() / 4);
    const uint32_t segment[RLV_SEGMENT_WORDS] = {0, 5, RLV_NONE, 0, RLV_NONE, 0, 0, 0};
    for (uint32_t w = 0; w < refs[i].length * 4; w++) {
      // Small in float32 and in either half of bfloat16.
      const uint32_t number = 0x3c003c00u + ((w * 2654435761u) & 0x80ff80ffu);
      to.push_back(name == "segs"         ? segment[w % RLV_SEGMENT_WORDS]
                   : name == "lens"       ? w + 1
                   : kIndices.count(name) ? w
                                          : number);
    }
  }
  std::vector<uint32_t>& words = work.batches.back();
  words.push_back(id | uint32_t(1 + record.size()) << 16);
  words.insert(words.end(), record.begin(), record.end());
}

// The names in the records become those of a device's buffers.
void name_buffers(std::vector<uint32_t>& words, const uint32_t* handles) {
  for (size_t at = 0; at < words.size(); at += words[at] >> 16) {
    auto* refs = reinterpret_cast<rlv_ref*>(&words[at + 1]);
    for (int i = 0; i < rlv::op_info(words[at] & 0xffffu).tensors; i++)
      if (refs[i].buffer != 0) refs[i].buffer = handles[refs[i].buffer - 1];
  }
}

constexpr uint32_t kTextBytes = 512;

// One use of a device. Takes no memory itself: what fails is the library's.
class Use {
 public:
  explicit Use(const Work& work) : work_(work), words_(work.batches) {
    for (const auto& contents : work.contents) results_.push_back(contents);
  }

  bool open(const char* name) {
    device_ = rlv_open(name, 2);
    if (device_ == 0) rlv_error(0, text, sizeof text);
    return device_ != 0;
  }

  // Everything between opening and closing. False with a text, or without one where a buffer was refused.
  bool run() {
    text[0] = 0;
    uint32_t handles[kBuffers] = {};
    const bool done = allocate(handles) && compute(handles);
    const bool told = rlv_error(device_, text, sizeof text) > 0;
    for (uint32_t handle : handles)
      if (handle) rlv_buffer_free(device_, handle);
    return done && !told;
  }

  void close() { rlv_close(device_); }
  bool refused_a_buffer = false;
  char text[kTextBytes] = {};
  const std::vector<std::vector<uint32_t>>& results() const { return results_; }

 private:
  bool allocate(uint32_t* handles) {
    refused_a_buffer = false;
    for (uint32_t i = 0; i < kBuffers; i++) {
      handles[i] = rlv_buffer_new(device_, uint32_t(work_.contents[i].size() / 4), "a buffer of the test");
      refused_a_buffer = handles[i] == 0;
      if (refused_a_buffer) return false;
      if (void* to = rlv_buffer_ptr(device_, handles[i]))
        std::memcpy(to, work_.contents[i].data(), work_.contents[i].size() * 4);
    }
    return true;
  }

  bool compute(const uint32_t* handles) {
    char info[256];
    if (rlv_info(device_, info, sizeof info) == 0) return false;
    for (size_t b = 0; b < words_.size(); b++) {
      std::copy(work_.batches[b].begin(), work_.batches[b].end(), words_[b].begin());
      name_buffers(words_[b], handles);
      const uint32_t ticket = rlv_submit(device_, words_[b].data(), uint32_t(words_[b].size()));
      if (ticket == 0) return false;
      while (rlv_wait(device_, ticket, 50) == 1) {
      }
    }
    for (uint32_t i = 0; i < kBuffers; i++)
      if (const void* from = rlv_buffer_ptr(device_, handles[i]))
        std::memcpy(results_[i].data(), from, results_[i].size() * 4);
    return true;
  }

  const Work& work_;
  std::vector<std::vector<uint32_t>> words_;
  std::vector<std::vector<uint32_t>> results_;
  uint32_t device_ = 0;
};

bool one_line(const char* text) { return *text && !std::strchr(text, '\n'); }

// Makes allocation after allocation fail; how many there were.
long sweep(const char* name, const Work& work, bool all_that_follow) {
  const std::string what = std::string(name) + (all_that_follow ? ", all from one on" : "");
  Use plain(work);
  const bool ran = plain.open(name) && plain.run();
  check(ran, what + ": nothing fails: " + plain.text);
  plain.close();
  Use use(work), next(work);
  for (long n = 1;; n++) {
    const std::string which = what + ", allocation " + std::to_string(n);
    const long before = live;
    lasting = all_that_follow;
    countdown = n;
    const bool opened = use.open(name);
    const bool done = opened && use.run();
    const bool over = countdown > 0;
    countdown = 0;
    exhausted = false;
    if (over) {
      check(done, which + ": all were made: " + use.text);
      use.close();
      return n - 1;
    }
    bool ok = !done && (use.refused_a_buffer || one_line(use.text));
    if (opened) {
      ok = ok && use.run() && use.results() == plain.results();
      use.close();
    }
    if (!ok) check(false, which + ": " + use.text);
    const long left = live - before;
    if (left != 0) check(false, which + ": left behind: " + std::to_string(left));
    if (!(next.open(name) && next.run() && next.results() == plain.results()))
      check(false, which + ": a new device: " + next.text);
    next.close();
    if (g_failed > 10) return n;
  }
}

// Each operation once, or those of `ids`.
Work operations(const char* device, uint32_t dt, const std::set<uint32_t>& ids) {
  Work all;
  for (uint32_t id = 1; id < RLV_OP_COUNT; id++) {
    if (!ids.empty() && ids.count(id) == 0) continue;
    if (all.batches.empty() || all.batches.back().size() > 300) all.batches.emplace_back();
    Work alone;
    alone.batches.emplace_back();
    append(alone, id, dt);
    append(all, id, dt);
    Use use(alone);
    const bool ran = use.open(device) && use.run();
    check(ran, std::string(device) + ": " + use.text);
    use.close();
  }
  return all;
}

// The memory that reading is measured with is for each thread to find.
void test_measure() {
  const uint32_t device = rlv_open("cpu", 2);
  smallest = 64 << 20;
  for (bool all_that_follow : {false, true}) {
    lasting = all_that_follow;
    countdown = 1;
    check(rlv_measure(device, 2, 0.001) == 0, "no memory to measure with");
    exhausted = false;
    char text[kTextBytes];
    rlv_error(device, text, sizeof text);
    check(std::strncmp(text, "out of memory: [measure]: ", 26) == 0, std::string("and says so: ") + text);
  }
  smallest = 0;
  check(rlv_measure(device, 0, 0.001) > 0, "and measures other things");
  rlv_close(device);
}

constexpr uint32_t kValues = 64;

struct Exchanged {
  uint32_t rank_and_size[2];
  uint32_t bits[2] = {0x80000000, 0x7fc00000}, sizes[2] = {8, 8}, given[4];
  float floats[kValues];
  uint16_t bfloats[kValues];
};

bool wait_for_ranks() {
  uint32_t state = 1;
  while (state == 1) state = rlv_mpi_wait(50);
  return state == 0;
}

// Everything that a rank does, `step` by step; 0 where it went well.
uint32_t exchange(int step, const char* library, Exchanged& e) {
  switch (step) {
    case 0:
      return rlv_mpi_load(library, uint32_t(std::strlen(library) + 1));
    case 1: {
      char info[512];
      return rlv_mpi_info(info, sizeof info) == 0;
    }
    case 2:
      return rlv_mpi_start(e.rank_and_size, 2);
    case 3:
      return rlv_mpi_gather(e.bits, 8, e.sizes, 2) || !wait_for_ranks() || rlv_mpi_take(e.given, 0, 16);
    case 4:
      return rlv_mpi_sum(e.floats, sizeof e.floats, RLV_F32) || !wait_for_ranks();
    case 5:
      return rlv_mpi_sum(e.bfloats, sizeof e.bfloats, RLV_BF16) || !wait_for_ranks();
    default:
      return rlv_mpi_stop();
  }
}
constexpr int kSteps = 7;

// Rank 0 sums the first half, to which the mirror of the library adds the second.
bool exchanged(const Exchanged& e) {
  bool ok = std::memcmp(e.given, e.bits, 8) == 0 && std::memcmp(e.given + 2, e.bits, 8) == 0;
  for (uint32_t i = 0; i < kValues; i++) {
    const uint32_t half = i % (kValues / 2);
    ok = ok && e.floats[i] == 2.f * float(half) + 32.5f && e.bfloats[i] == 0x4381;
  }
  return ok;
}

enum Ended : int { kFine, kAllMade, kWrong };

// One process of its own, for MPI starts once: allocation n fails. What fails says so, and can be done again,
// or the exchange has broken off and nothing follows it.
Ended exchange_without(long n, const char* library) {
  Exchanged e;
  for (uint32_t i = 0; i < kValues; i++) {
    e.floats[i] = float(i) + 0.25f;
    e.bfloats[i] = i < kValues / 2 ? 0x4380 : 0x3f81;
  }
  smallest = 0;
  countdown = n;
  for (int step = 0; step < kSteps; step++) {
    if (exchange(step, library, e) == 0) continue;
    const bool over = countdown > 0;
    countdown = 0;
    char text[kTextBytes];
    rlv_mpi_error(text, sizeof text);
    if (over || !one_line(text) || std::strncmp(text, "out of memory: ", 15) != 0) {
      std::printf("FAIL rank, allocation %ld, step %d: %s\n", n, step, text);
      return kWrong;
    }
    if (exchange(step, library, e) == 0) continue;
    rlv_mpi_error(text, sizeof text);
    if (std::strcmp(text, "an exchange has failed") == 0) return kFine;
    std::printf("FAIL rank, allocation %ld, step %d again: %s\n", n, step, text);
    return kWrong;
  }
  if (!exchanged(e)) {
    std::printf("FAIL rank, allocation %ld: other sums\n", n);
    return kWrong;
  }
  return countdown > 0 ? kAllMade : kFine;
}

int ranks_without_memory(const char* library) {
  for (long n = 1;; n++) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      const Ended ended = exchange_without(n, library);
      std::fflush(stdout);
      _exit(ended);
    }
    int status = -1;
    waitpid(child, &status, 0);
    const int ended = WIFEXITED(status) ? WEXITSTATUS(status) : int(kWrong);
    check(ended != kWrong, "rank, allocation " + std::to_string(n));
    if (ended == kFine && n < 1000) continue;
    check(ended == kAllMade && n > 10, "allocations of a rank were found");
    std::printf("%ld allocations failed\n%d passed, %d failed\n", n - 1, g_passed, g_failed);
    return g_failed ? 1 : 0;
  }
}

}  // namespace

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  if (argc > 1) return ranks_without_memory(argv[1]);
  long failures = 0;
  const auto sweeps = [&](const char* device, uint32_t dt, const std::set<uint32_t>& ids, bool both) {
    const Work work = operations(device, dt, ids);
    for (bool all_that_follow : {true, false}) {
      if (!all_that_follow && !both) continue;
      const long n = sweep(device, work, all_that_follow);
      check(n > 20, std::string(device) + ": allocations were found");
      failures += n;
    }
  };
  sweeps("cpu", RLV_F32, {}, true);
  sweeps("cpu", RLV_BF16, {}, false);
  sweeps("ref", RLV_F32, {RLV_OP_RMS_NORM_FWD, RLV_OP_ADD}, true);
  sweeps("null", RLV_F32, {}, true);
  test_measure();
  std::printf("%ld allocations failed\n%d passed, %d failed\n", failures, g_passed, g_failed);
  return g_failed ? 1 : 0;
}
