// The core through the C interface: handles, hazards, validation of records, errors, order, threads. Linked
// with the library; run under AddressSanitizer and ThreadSanitizer too.
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <vector>
#include "../../metal/core/handles.h"
#include "../../metal/core/hazard.h"
#include "../../metal/cpu/x86.h"
#include "rlv.h"

namespace {

int g_passed = 0, g_failed = 0;
void check(bool ok, const std::string& what) {
  ok ? g_passed++ : g_failed++;
  if (!ok) std::printf("FAIL %s\n", what.c_str());
}

std::string error_of(uint32_t device) {
  char text[1024];
  const uint32_t n = rlv_error(device, text, sizeof text);
  return std::string(text, std::min<size_t>(n, sizeof text - 1));
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

rlv_ref ref(uint32_t buffer, uint32_t offset, uint32_t length) { return {buffer, offset, length}; }

template <class T>
void append(std::vector<uint32_t>& words, uint32_t id, const T& op) {
  words.push_back(id | uint32_t(1 + sizeof op / 4) << 16);
  const size_t at = words.size();
  words.resize(at + sizeof op / 4);
  std::memcpy(words.data() + at, &op, sizeof op);
}

rlv_op_add add_op(rlv_ref y, rlv_ref a, rlv_ref b, uint32_t n) { return {y, a, b, n, RLV_F32}; }

uint32_t submit(uint32_t device, const std::vector<uint32_t>& words) {
  return rlv_submit(device, words.data(), uint32_t(words.size()));
}

void finish(uint32_t device, uint32_t ticket) {
  while (rlv_wait(device, ticket, 50) == 1) {
  }
}

void test_handles() {
  rlv::Handles handles;
  int x = 0;
  const uint32_t a = handles.add(&x, 16, "first");
  check(handles.find(a) && handles.find(a)->label == "first", "a new handle is found");
  handles.remove(a);
  check(!handles.find(a), "a removed handle is stale");
  const uint32_t b = handles.add(&x, 32, "second");
  check(b != a && handles.find(b)->bytes == 32 && !handles.find(a),
        "its slot comes back under another generation");
  check(contains(handles.describe(a), "stale") && handles.describe(b) == "second",
        "texts tell the two apart");
  check(!handles.find(0) && !handles.find(0xffffffffu), "handles nobody gave");
  uint32_t last = b;
  for (int i = 0; i < 40000; i++) {  // more than there are generations
    handles.remove(last);
    last = handles.add(&x, 16, "again");
    if (last == 0 || !handles.find(last)) break;
  }
  check(handles.find(last) != nullptr, "generations wrap without ever giving 0");
}

void test_hazards() {
  using rlv::ByteRange;
  rlv::Hazards h;
  const ByteRange write{1, 0, 64, rlv::kWrite};
  h.note(&write, 1);
  auto conflicts = [&](uint32_t buffer, uint64_t begin, uint64_t end, rlv::Access access) {
    const ByteRange r{buffer, begin, end, access};
    return h.conflicts(&r, 1);
  };
  check(conflicts(1, 32, 40, rlv::kRead), "read after write");
  check(conflicts(1, 63, 80, rlv::kWrite), "write after write");
  check(!conflicts(1, 64, 80, rlv::kWrite) && !conflicts(2, 0, 64, rlv::kWrite),
        "disjoint ranges, other buffers");
  const ByteRange read{3, 0, 64, rlv::kRead};
  h.note(&read, 1);
  check(conflicts(3, 0, 1, rlv::kWrite) && !conflicts(3, 0, 64, rlv::kRead), "write after read; reads share");
  check(conflicts(3, 10, 20, rlv::kReadWrite), "read-write counts as both");
  h.clear();
  check(!conflicts(1, 0, 64, rlv::kReadWrite), "a barrier forgets");

  std::mt19937 random(7);
  for (int round = 0; round < 2000; round++) {
    rlv::Hazards tracker;
    std::vector<ByteRange> noted;
    for (int i = 0; i < 8; i++) {
      const uint64_t begin = random() % 100;
      const ByteRange r{1 + uint32_t(random() % 3), begin, begin + 1 + random() % 30,
                        rlv::Access(1 + random() % 3)};
      bool naive = false;
      for (const ByteRange& n : noted)
        naive |= n.buffer == r.buffer && n.begin < r.end && r.begin < n.end &&
                 (n.access != rlv::kRead || r.access != rlv::kRead);
      if (tracker.conflicts(&r, 1) != naive) return check(false, "hazards differ from the naive rule");
      tracker.note(&r, 1);
      noted.push_back(r);
    }
  }
  check(true, "hazards follow the naive rule on random ranges");
}

void test_validation() {
  const uint32_t device = rlv_open("cpu", 2);
  const uint32_t buffer = rlv_buffer_new(device, 64, "values");
  const rlv_ref y = ref(buffer, 0, 4), a = ref(buffer, 8, 4), b = ref(buffer, 16, 4);
  auto refuse = [&](const std::vector<uint32_t>& words, const char* text) {
    check(submit(device, words) == 0, std::string("refused: ") + text);
    const std::string error = error_of(device);
    check(contains(error, text), std::string("says '") + text + "': " + error);
    check(error_of(device).empty(), "an error is told once");
  };
  std::vector<uint32_t> words;
  append(words, RLV_OP_ADD, add_op(y, a, b, 16));
  const uint32_t ticket = submit(device, words);
  check(ticket != 0, "a good record");
  finish(device, ticket);

  refuse({0u | 3u << 16, 0, 0}, "malformed record");
  refuse({RLV_OP_COUNT | 3u << 16, 0, 0}, "malformed record");
  refuse({words[0], 1, 2}, "malformed record");
  refuse({RLV_OP_ADD | 2u << 16, 1}, "malformed record");
  std::vector<uint32_t> w;
  append(w, RLV_OP_ADD, add_op(ref(buffer, 62, 4), a, b, 16));
  refuse(w, "beyond 'values' of 1024 bytes");
  w.clear();
  append(w, RLV_OP_ADD, add_op(y, a, b, 17));
  refuse(w, "fewer than the shape needs");
  w.clear();
  append(w, RLV_OP_ADD, add_op(y, a, b, 0xffffffffu));
  refuse(w, "fewer than the shape needs");
  w.clear();
  append(w, RLV_OP_ADD, add_op(y, ref(0, 0, 0), b, 16));
  refuse(w, "[add] a: missing");
  w.clear();
  // Rows of no bytes: no length says how many there are.
  append(w, RLV_OP_RMS_NORM_FWD,
         rlv_op_rms_norm_fwd{y, ref(0, 0, 0), a, ref(0, 0, 0), b, 0xffffffffu, 0, 1e-6f, RLV_F32});
  refuse(w, "[rms_norm_fwd] record: cols is 0");
  w.clear();
  rlv_op_lora_bwd lora{};
  lora.du = lora.dy = lora.x = lora.u = lora.routes = y;
  lora.a = lora.b = ref(buffer, 0, 64);
  lora.m = lora.n = lora.k = lora.r = 1;
  append(w, RLV_OP_LORA_BWD, lora);
  refuse(w, "[lora_bwd] masked: missing, and there is routes");
  w.clear();
  rlv_op_logprob_bwd head{};
  head.dx = head.x = head.targets = head.lse = head.dlogprob = head.dentropy = y;
  head.w = ref(buffer, 0, 64);
  head.rows = head.cols = head.vocab = 1;
  append(w, RLV_OP_LOGPROB_BWD, head);
  refuse(w, "[logprob_bwd] entropy: missing, and there is dentropy");
  w.clear();
  rlv_op_add typed = add_op(y, a, b, 16);
  typed.dt = 7;
  append(w, RLV_OP_ADD, typed);
  refuse(w, "unknown dtype");
  w.clear();
  const uint32_t gone = rlv_buffer_new(device, 4, "gone");
  check(rlv_buffer_free(device, gone) == 0, "freeing");
  append(w, RLV_OP_ADD, add_op(ref(gone, 0, 4), a, b, 16));
  refuse(w, "stale handle, once 'gone'");
  check(rlv_buffer_free(device, gone) != 0 && contains(error_of(device), "stale"), "freeing twice");

  // A good record before a bad one is not run either, and nothing is accepted until the error is taken.
  w = words;
  w.push_back(5);
  check(submit(device, w) == 0 && submit(device, words) == 0, "the stream stands still");
  error_of(device);
  const uint32_t next = submit(device, words);
  check(next != 0, "and goes on");
  finish(device, next);

  // Bad data inside a good record: an error, not a crash.
  auto* ids = static_cast<uint32_t*>(rlv_buffer_ptr(device, buffer));
  ids[0] = 1000;
  w.clear();
  append(
      w, RLV_OP_EMBED_FWD,
      rlv_op_embed_fwd{ref(buffer, 4, 2), ref(buffer, 0, 1), ref(buffer, 8, 56), 1, 4, 5, RLV_F32, RLV_F32});
  const uint32_t bad = submit(device, w);
  finish(device, bad);
  check(rlv_wait(device, bad, 0) == 2 && contains(error_of(device), "outside the vocabulary"),
        "an id outside");
  check(rlv_buffer_free(device, buffer) == 0, "the last buffer");
  double stats[10];
  rlv_stats(device, stats, 10);
  check(stats[0] == 0 && stats[1] == 0, "nothing is left");
  rlv_close(device);
}

// Random and mutated records never crash; lengths and handles are checked before anything runs.
void test_fuzz() {
  const uint32_t device = rlv_open("cpu", 1);
  const uint32_t buffer = rlv_buffer_new(device, 4096, "fuzzed");
  std::mt19937 random(11);
  const uint32_t lengths[] = {3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 24, 30, 36, 40};
  int accepted = 0;
  for (int i = 0; i < 30000; i++) {
    const uint32_t id = 1 + random() % (RLV_OP_COUNT - 1);
    std::vector<uint32_t> words{id | lengths[random() % 17] << 16};
    while (words.size() < words[0] >> 16) {
      const uint32_t kind = random() % 4;
      words.push_back(kind == 0   ? buffer
                      : kind == 1 ? random() % 8
                      : kind == 2 ? random() % 64
                                  : uint32_t(random()));
    }
    const uint32_t ticket = submit(device, words);
    if (ticket != 0) {
      finish(device, ticket);
      accepted++;
    }
    error_of(device);
  }
  check(true, "fuzzed records are refused or run: " + std::to_string(accepted) + " accepted");
  rlv_close(device);
}

// A chain of dependent additions over random ranges gives what a plain loop gives, on any number of threads.
void test_order(uint32_t threads) {
  const uint32_t device = rlv_open("cpu", threads);
  constexpr uint32_t kFloats = 4096, kOps = 400;
  const uint32_t buffer = rlv_buffer_new(device, kFloats / 4, "values");
  auto* values = static_cast<float*>(rlv_buffer_ptr(device, buffer));
  std::vector<float> want(kFloats);
  for (uint32_t i = 0; i < kFloats; i++) want[i] = values[i] = float(i % 17) * 1e-3f;
  std::mt19937 random(threads);
  for (int batch = 0; batch < 20; batch++) {
    std::vector<uint32_t> words;
    for (uint32_t op = 0; op < kOps / 20; op++) {
      const uint32_t n = 4 * (1 + random() % 200);
      auto at = [&] { return 4 * (random() % ((kFloats - n) / 4)); };
      const uint32_t y = at(), a = at(), b = at();
      // Partial overlap of output and input is not defined: keep them apart or equal.
      auto apart = [&](uint32_t p) { return p == y || p + n <= y || y + n <= p; };
      if (!apart(a) || !apart(b)) continue;
      append(words, RLV_OP_ADD,
             add_op(ref(buffer, y / 4, n / 4), ref(buffer, a / 4, n / 4), ref(buffer, b / 4, n / 4), n));
      std::vector<float> sum(n);
      for (uint32_t i = 0; i < n; i++) sum[i] = want[a + i] + want[b + i];
      std::copy(sum.begin(), sum.end(), want.begin() + y);
    }
    if (!words.empty()) finish(device, submit(device, words));
  }
  check(std::memcmp(values, want.data(), kFloats * 4) == 0,
        "order on " + std::to_string(threads) + " threads");
  rlv_close(device);
}

void test_barriers() {
  const uint32_t device = rlv_open("cpu", 2);
  const uint32_t buffer = rlv_buffer_new(device, 1024, "values");
  auto part = [&](uint32_t i) { return ref(buffer, i * 16, 16); };
  auto barriers = [&](const std::vector<uint32_t>& words) {
    double before[10], after[10];
    rlv_stats(device, before, 10);
    finish(device, submit(device, words));
    rlv_stats(device, after, 10);
    return after[5] - before[5];
  };
  std::vector<uint32_t> free_, chained, even, shifted;
  for (uint32_t i = 0; i < 6; i++) {
    append(free_, RLV_OP_ADD, add_op(part(10 + i), part(0), part(1), 60));
    append(chained, RLV_OP_ADD, add_op(part(i + 1), part(i), part(i), 60));
    append(even, RLV_OP_ADD, add_op(part(i + 1), part(i), part(i), 64));
    // Half of what the link before wrote: another thread may have it.
    append(shifted, RLV_OP_ADD, add_op(part(i + 1), ref(buffer, i * 16, 8), ref(buffer, i * 16, 8), 32));
  }
  check(barriers(free_) == 0, "independent operations run without a barrier");
  check(barriers(chained) == 5, "each link of a chain waits for the one before");
  check(barriers(even) == 0, "links that divide evenly stay with their threads");
  check(barriers(shifted) == 5, "a part of an evenly divided range waits");
  rlv_close(device);
}

// Matrices that end with their file, and the file with a page: a kernel that read a byte more would not
// return.
void test_mapped_files() {
#ifdef MADV_POPULATE_READ
  const uint32_t device = rlv_open("cpu", 2);
  char path[] = "/tmp/rlv-mapped-XXXXXX";
  const int fd = mkstemp(path);
  unlink(path);
  const uint32_t page = uint32_t(sysconf(_SC_PAGESIZE));
  std::vector<uint8_t> file(4 * page);
  std::mt19937 random(5);
  for (uint8_t& b : file) b = uint8_t(random());
  check(write(fd, file.data(), file.size()) == ssize_t(file.size()), "a file to map");
  const uint32_t target = rlv_buffer_new(device, 4096, "target");
  bool same = true;
  for (uint32_t end : {4 * page, 4 * page - 1})
    for (auto [n, k] : {std::pair{1u, 1u}, {3u, 7u}, {32u, 32u}, {33u, 31u}, {40u, 65u}}) {
      const uint32_t bytes = n * k * 2, begin = end - bytes, words = (k + 1) / 2;
      const uint32_t source = rlv_map_file(device, fd, begin, bytes, "pages");
      if (!source) return check(false, "mapping a part of a file");
      std::vector<uint32_t> record;
      const uint32_t units = (n + 31) / 32 * 32 * words / 4;
      append(record, RLV_OP_PACK_WEIGHT,
             rlv_op_pack_weight{
                 ref(target, 0, units), {}, ref(source, 0, (bytes + 15) / 16), n, k, RLV_BF16, RLV_BF16});
      finish(device, submit(device, record));
      same &= error_of(device).empty() && rlv_buffer_free(device, source) == 0;
      const auto* packed = static_cast<const uint16_t*>(rlv_buffer_ptr(device, target));
      for (uint32_t row = 0; row < n; row++)
        for (uint32_t col = 0; col < k; col++) {
          const uint8_t* from = &file[begin + (row * k + col) * 2];
          const size_t at = (size_t(row / 32) * words + col / 2) * 64 + row % 32 * 2 + col % 2;
          same &= packed[at] == (from[0] | from[1] << 8);
        }
    }
  check(same, "matrices are packed from the last bytes of a file");
  const uint32_t pages = rlv_map_file(device, fd, 0, page, "pages");
  std::vector<uint32_t> written;
  append(written, RLV_OP_ADD, add_op(ref(pages, 0, 4), ref(target, 0, 4), ref(target, 0, 4), 16));
  check(submit(device, written) == 0 && contains(error_of(device), "[add] y: 'pages' is a mapped file"),
        "operations do not write to files");
  check(rlv_buffer_clear(device, pages) != 0 && contains(error_of(device), "it can only be read"),
        "nor are they cleared");
  check(rlv_buffer_clear(device, 12345) != 0 && contains(error_of(device), "unknown buffer"),
        "no clearing of an unknown buffer");
  check(rlv_map_file(device, fd, 4.0 * page - 1, 2, "beyond") == 0 && error_of(device).empty(),
        "no mapping beyond the end, and no error left");
  close(fd);
  rlv_close(device);
#endif
}

void test_devices() {
  check(rlv_open("gpu", 0) == 0 && contains(error_of(0), "no such device: gpu"), "an unknown device");
  for (int i = 0; i < 200; i++) {
    const uint32_t a = rlv_open("cpu", 1 + i % 3), b = rlv_open("null", 0);
    const uint32_t buffer = rlv_buffer_new(a, 16, "left over");
    if (!a || !b || !buffer) return check(false, "opening devices over and over");
    rlv_close(b);
    rlv_close(a);
  }
  check(true, "devices open and close with what they hold");
  const uint32_t device = rlv_open("cpu", 1);
  rlv_fail_allocation(2);
  const uint32_t first = rlv_buffer_new(device, 16, "first"), second = rlv_buffer_new(device, 16, "second");
  check(first != 0 && second == 0, "the second allocation fails as asked");
  check(rlv_buffer_new(device, 16, "third") != 0, "the third succeeds");
  check(rlv_submit(device, nullptr, 4) == 0 && rlv_submit(99, nullptr, 0) == 0,
        "null records, unknown device");
  check(rlv_buffer_ptr(device, 12345) == nullptr, "no address of an unknown buffer");
  char hash[64];
  check(rlv_abi_hash(hash, sizeof hash) == 16, "the interface has a hash");
  rlv_close(device);
}

#if defined(__x86_64__) && defined(__linux__)
// The kernel asks the processor too, and leaves out what it does not save.
void test_x86() {
  std::set<std::string> flags;
  std::ifstream file("/proc/cpuinfo");
  for (std::string word; file >> word && word != "bugs";) flags.insert(word);
  const auto all = [&](std::initializer_list<const char*> names) {
    for (const char* name : names)
      if (flags.count(name) == 0) return false;
    return true;
  };
  const rlv::X86 x86 = rlv::detect_x86();
  const bool avx2 = all({"avx2", "fma", "f16c"});
  const bool avx512 = avx2 && all({"avx512f", "avx512bw", "avx512vl", "avx512dq"});
  check(flags.count("sse2") == 1, "the kernel lists what the processor has");
  check(x86.avx2 == avx2, "AVX2 is found where it is");
  check(x86.avx512 == avx512, "AVX-512 is found where it is");
  check(x86.avx512bf16 == (avx512 && all({"avx512_bf16"})), "bfloat16 instructions are found where they are");
}
#endif

}  // namespace

int main() {
#if defined(__x86_64__) && defined(__linux__)
  test_x86();
#endif
  test_handles();
  test_hazards();
  test_validation();
  test_fuzz();
  for (uint32_t threads : {1u, 2u, 3u, 5u}) test_order(threads);
  test_barriers();
  test_mapped_files();
  test_devices();
  std::printf("%d passed, %d failed\n", g_passed, g_failed);
  return g_failed ? 1 : 0;
}
