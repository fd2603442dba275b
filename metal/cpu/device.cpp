// The CPU device: the kernels of the best instruction set this processor has, run by the pool.
#include <chrono>
#include <cstdlib>
#include <cstring>
#include "../core/device.h"
#include "../core/guard.h"
#include "kernels/row_split.h"
#include "pool.h"
#include "x86.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace rlv {

#define DECLARE_ISA(isa)                                     \
  namespace isa {                                            \
  extern const Kernel kKernels[RLV_OP_COUNT];                \
  double measure_limit(Ctx&, uint32_t what, double seconds); \
  }
#if defined(__x86_64__)
DECLARE_ISA(avx512bf16)
DECLARE_ISA(avx512)
DECLARE_ISA(avx2)
#elif defined(__aarch64__)
DECLARE_ISA(neon)
#endif
DECLARE_ISA(portable)

namespace {

struct Isa {
  const char* name;
  bool supported;
  const Kernel* kernels;
  double (*measure)(Ctx&, uint32_t what, double seconds);
};

// Best first.
std::vector<Isa> instruction_sets() {
  std::vector<Isa> list;
#if defined(__x86_64__)
  const X86 x86 = detect_x86();
  list.push_back({"avx512bf16", x86.avx512bf16, avx512bf16::kKernels, avx512bf16::measure_limit});
  list.push_back({"avx512", x86.avx512, avx512::kKernels, avx512::measure_limit});
  list.push_back({"avx2", x86.avx2, avx2::kKernels, avx2::measure_limit});
#elif defined(__aarch64__)
  list.push_back({"neon", true, neon::kKernels, neon::measure_limit});
#endif
  list.push_back({"portable", true, portable::kKernels, portable::measure_limit});
  return list;
}

uint32_t usable_processors() {
#if defined(__linux__)
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) == 0) return uint32_t(CPU_COUNT(&mask));
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n > 0 ? n : 1;
}

class CpuDevice final : public Device {
 public:
  CpuDevice(uint32_t threads, Isa isa)
      : isa_(isa), pool_(threads, [this](const char* text) { fail(text); }) {}
  const char* name() const override { return "cpu"; }
  std::string info() const override {
    return std::string("{\"name\":\"cpu\",\"isa\":\"") + isa_.name +
           "\",\"threads\":" + std::to_string(pool_.threads()) + "}";
  }
  bool maps_files() const override { return true; }
  uint64_t scratch_bytes() const override { return pool_.scratch_bytes(); }

  // Fields are named by their place in the operation's struct.
  RowSplit row_split(uint32_t id, const void* args) const override {
    auto rows = [&](const auto* a) { return shares(rlv::row_split(pool_.threads(), *a)); };
    auto elements = [&](uint32_t n) { return even_split(pool_.threads(), n) ? kEven : 0; };
#define ROWS(OP, Struct, fields) \
  case RLV_OP_##OP:              \
    return {rows(static_cast<const args::Struct*>(args)), fields};
#define CACHE(OP, Struct, count, fields, paged)             \
  case RLV_OP_##OP: {                                       \
    const auto* a = static_cast<const args::Struct*>(args); \
    const uint32_t share = rows(a);                         \
    return {share, fields, share ? a->count : 0, paged};    \
  }
#define ELEMENTS(OP, Struct, fields) \
  case RLV_OP_##OP:                  \
    return {elements(static_cast<const args::Struct*>(args)->n), fields};
    switch (id) {
      ROWS(GEMM_NT, GemmNt, 0b0011)                  // y, x
      ROWS(LORA_FWD, LoraFwd, 0b001111)              // y, u, base, x
      ROWS(RMS_NORM_FWD, RmsNormFwd, 0b1111)         // y, h, x, delta
      ROWS(QK_NORM_ROPE_FWD, QkNormRopeFwd, 0b0011)  // y, x
      ROWS(EMBED_FWD, EmbedFwd, 0b0011)              // y, ids
      ROWS(SAMPLE, Sample, 0b1111111)                // ids, logprob, logits, counters, work, lse, entropy
      ROWS(NORM_QKV, NormQkv, 0b100000001111)        // q, k, v, h, work
      // Pages that several sequences share are not written. What kv_append writes belongs to prompts.
      CACHE(ROPE_APPEND, RopeAppend, rows, 0b10000011101, 0b10)  // y, q, k, v, work; kv
      CACHE(ATTN_DECODE, AttnDecode, batch, 0b0011, 0b0100)      // o, q; kv
      ROWS(KV_APPEND, KvAppend, 0b0110)                          // k, v
      ROWS(LINEAR_RESIDUAL, LinearResidual, 0b0111)              // y, residual, x
      ROWS(NORM_SWIGLU, NormSwiglu, 0b100011)                    // y, h, work
      ELEMENTS(ADD, Add, 0b111)                                  // y, a, b
      ELEMENTS(SWIGLU_FWD, SwigluFwd, 0b111)                     // y, gate, up
    }
#undef ROWS
#undef CACHE
#undef ELEMENTS
    return {};
  }

  void enqueue(std::unique_ptr<Program> program) override {
    const std::shared_ptr<const Program> shared = std::move(program);
    pool_.push(
        {[this, p = shared.get()](Ctx& c) { run(c, *p); }, [this, shared] { complete(shared->ticket); }});
  }

  // 0, with the error told, where a thread has no memory for it.
  double measure(uint32_t what, double seconds) override {
    double result = 0;
    std::atomic<bool> done{false};
    const auto run = [&](Ctx& c) {
      try {
        const double value = isa_.measure(c, what, seconds);
        if (c.tid == 0) result = value;
      } catch (const std::exception&) {
        fail(Caught("[measure]").text());
        throw;
      }
    };
    pool_.push({run, [&] { done = true; }});
    while (!done) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return result;
  }

 private:
  static constexpr uint32_t kEven = RLV_NONE;
  // What a number of rows means for who has which bytes. Ranges are known in units of 16 bytes: with fewer
  // rows two tensors of different sizes may look alike.
  uint32_t shares(uint32_t rows) const {
    if (rows == 0 || rows % 16 != 0) return 0;
    return rows % pool_.threads() == 0 ? kEven : rows;
  }

  // A failed operation does not stop the program: kernels are safe on any data, and all threads must meet
  // the same barriers. The stream refuses new work until the error is taken. One without memory does: every
  // thread leaves the program.
  void run(Ctx& c, const Program& program) {
    const Step* at = nullptr;
    try {
      for (const Step& step : program.steps) {
        at = &step;
        run(c, program, step);
      }
    } catch (const std::exception&) {
      fail(Caught(op_info(at->id).name).text());
      throw;
    }
  }

  void run(Ctx& c, const Program& program, const Step& step) {
    using Clock = std::chrono::steady_clock;
    const bool profiling = profiling_;
    // While measuring, every operation stands alone, so that its time is its own.
    if (step.barrier || profiling) {
      c.barrier();
      if (c.tid == 0) barriers_ += 1;
    }
    const auto start = profiling ? Clock::now() : Clock::time_point();
    isa_.kernels[step.id](c, program.args_of(step));
    if (!profiling) return;
    c.barrier();
    if (c.tid != 0) return;
    std::lock_guard<std::mutex> lock(profile_mutex_);
    profile_[step.id].ns += std::chrono::duration<double, std::nano>(Clock::now() - start).count();
  }

  const Isa isa_;
  Pool pool_;
};

}  // namespace

// RLV_ISA picks a lower instruction set than the best, for tests and comparisons.
std::unique_ptr<Device> make_cpu_device(uint32_t threads, std::string& error) {
  if (threads == 0) threads = usable_processors();
  if (threads > 256) threads = 256;
  const char* wanted = std::getenv("RLV_ISA");
  for (const Isa& isa : instruction_sets()) {
    if (wanted && *wanted ? std::strcmp(wanted, isa.name) != 0 : !isa.supported) continue;
    if (!isa.supported) break;
    return std::make_unique<CpuDevice>(threads, isa);
  }
  error = std::string("RLV_ISA: this processor has no '") + (wanted ? wanted : "") + "'";
  return nullptr;
}

}  // namespace rlv
