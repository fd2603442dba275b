// Tests of sq_norm, clip_coef and adamw on one instruction set, without the library: g++ -DRLV_ISA=...
// -Imetal/include, run from the project's root. Truth: torch's trajectories (goldens), float64 loops, and the
// identities that the split master and stochastic rounding promise.
#include "../../metal/cpu/kernels/optimizer.cpp"
#include "goldens.h"
#include "kernel_harness.h"

namespace {

double square_sum(const vector<float>& g, uint32_t threads = 1) {
  const uint32_t n = uint32_t(g.size());
  vector<double> sums = {-1, -1, -1}, partial(n / RLV_NORM_BLOCK + 1, 1e300);
  run(sq_norm, args::SqNorm{sums.data(), g.data(), partial.data(), n, RLV_F32, 3, 1}, threads);
  check(sums[0] == -1 && sums[2] == -1, "sq_norm: other slots stay");
  return sums[1];
}

ClipResult clip(vector<double> sums, float max_norm) {
  ClipResult r{};
  run(clip_coef, args::ClipCoef{&r, sums.data(), uint32_t(sums.size()), max_norm}, 2);
  return r;
}

void test_norms() {
  for (uint32_t n : {1u, 17u, 65536u, 65537u, 300001u}) {
    vector<float> g(n);
    for (float& x : g) x = float(normal());
    long double want = 0;
    for (float x : g) want += (long double)x * x;
    const double got = square_sum(g);
    check(std::abs(got / double(want) - 1) < 1e-14, "sq_norm: " + std::to_string(n));
    check(square_sum(g, 2) == got && square_sum(g, 3) == got, "sq_norm: thread count changes bits");
  }
  check(clip({9, 16}, 0).norm == 5 && clip({9, 16}, 0).coef == 1, "clip_coef: 0 is off");
  check(std::abs(clip({9, 16}, 1).coef - 0.2) < 1e-6 && clip({9, 16}, 6).coef == 1, "clip_coef");
  check(clip({}, 1).norm == 0 && clip({}, 1).coef == 1, "clip_coef: no gradient");
  for (double bad : {double(INFINITY), double(NAN), 1e200}) {
    const ClipResult r = clip({1, bad}, 1);
    check(r.nonfinite == 1, "clip_coef: not finite");
  }
  check(clip({1}, 1).nonfinite == 0, "clip_coef: finite");
  const float huge = 3e38f;
  check(clip({square_sum({huge})}, 0).nonfinite == 0, "clip_coef: squares do not overflow");
}

struct State {
  uint32_t wdt, mdt, n;
  Array p, lo, m, v;
  State(uint32_t wdt, uint32_t mdt, const vector<float>& init)
      : wdt(wdt), mdt(mdt), n(uint32_t(init.size())), p(wdt, n), lo(RLV_BF16, n), m(mdt, n), v(mdt, n) {
    for (uint32_t i = 0; i < n; i++) {
      if (wdt == RLV_F32) {
        p.set(i, init[i]);
        continue;
      }
      const uint32_t u = bits_of(init[i]);
      const uint16_t high = uint16_t((u + 0x8000) >> 16), low = uint16_t(u);
      std::memcpy(p.at(i), &high, 2);
      std::memcpy(lo.at(i), &low, 2);
    }
  }
  float master(uint32_t i) const {
    if (wdt == RLV_F32) return float(p[i]);
    uint16_t high;
    int16_t low;
    std::memcpy(&high, p.at(i), 2);
    std::memcpy(&low, lo.at(i), 2);
    return float_of((uint32_t(high) << 16) + uint32_t(int32_t(low)));
  }
  bool operator==(const State& o) const { return p == o.p && lo == o.lo && m == o.m && v == o.v; }
};

struct Hyper {
  double lr = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.1;
};
std::string step(State& s, const vector<float>& g, const Hyper& h, uint32_t t,
                 ClipResult result = {1, 1, 0, 0}, uint32_t threads = 1, uint32_t seed = 3) {
  return run(adamw,
             args::Adamw{s.p.ptr(),
                         s.wdt == RLV_BF16 ? s.lo.ptr() : nullptr,
                         g.data(),
                         s.m.ptr(),
                         s.v.ptr(),
                         nullptr,
                         nullptr,
                         &result,
                         s.n,
                         s.wdt,
                         RLV_F32,
                         s.mdt,
                         float(h.lr),
                         float(h.beta1),
                         float(h.beta2),
                         float(h.eps),
                         float(h.decay),
                         float(1 - std::pow(h.beta1, t)),
                         float(1 - std::pow(h.beta2, t)),
                         seed,
                         4,
                         t},
             threads);
}

void test_goldens() {
  const vector<goldens::Case> cases = goldens::cases("optim", "adamw");
  check(cases.size() >= 3, "adamw goldens: found " + std::to_string(cases.size()));
  for (const goldens::Case& g : cases) {
    Hyper h;
    h.eps = goldens::number(g.json, "eps", 0);
    h.beta1 = goldens::numbers(g.json, "betas")[0], h.beta2 = goldens::numbers(g.json, "betas")[1];
    const vector<double> decay = goldens::numbers(g.json, "weight_decay_by_parameter");
    const float max_norm = float(goldens::number(g.json, "max_grad_norm", 0));
    for (uint32_t wdt : {RLV_F32, RLV_BF16}) {
      vector<State> params;
      const auto floats = [&](const std::string& name) {
        return vector<float>(g[name].begin(), g[name].end());
      };
      const auto agree = [&](const std::string& name, uint32_t n,
                             const std::function<double(uint32_t)>& got) {
        bool ok = true;
        for (uint32_t i = 0; i < n; i++) {
          const double want = g[name][i];
          ok = ok && std::abs(got(i) - want) <=
                         1e-6 * std::abs(want) + (name.find("sq") != std::string::npos ? 0 : 1e-7);
        }
        check(ok, g.name + ": " + name);
      };
      for (int i = 0; i < 3; i++)
        params.emplace_back(wdt, RLV_F32, floats("p" + std::to_string(i) + ".init"));
      for (uint32_t t = 0; t < g["lr"].size(); t++) {
        const std::string suffix = ".step" + std::to_string(t);
        vector<double> sums;
        for (int i = 0; i < 3; i++) sums.push_back(square_sum(floats("g" + std::to_string(i) + suffix)));
        const ClipResult result = clip(sums, max_norm);
        check(std::abs(result.norm / g["grad_norms"][t] - 1) < 1e-6, g.name + ": norm");
        for (int i = 0; i < 3; i++) {
          h.lr = g["lr"][t], h.decay = decay[size_t(i)];
          State& s = params[size_t(i)];
          step(s, floats("g" + std::to_string(i) + suffix), h, t + 1, result);
          agree("p" + std::to_string(i) + suffix, s.n, [&](uint32_t j) { return double(s.master(j)); });
        }
      }
      for (int i = 0; i < 3; i++) {
        State& s = params[size_t(i)];
        agree("p" + std::to_string(i) + ".exp_avg", s.n, [&](uint32_t j) { return s.m[j]; });
        agree("p" + std::to_string(i) + ".exp_avg_sq", s.n, [&](uint32_t j) { return s.v[j]; });
      }
    }
  }
}

void test_split_master() {
  vector<float> init(1003), g(1003);
  for (float& x : init) x = float(normal());
  init[0] = float_of(0x3f808000), init[1] = float_of(0x3f818000);  // ties of an even and an odd high half
  init[2] = float_of(0xbf807fff), init[3] = 0, init[4] = -0.0f, init[5] = float_of(0x7f7fffff),
  init[6] = 1e-42f;
  Hyper h, still;
  still.lr = 0;
  State wide(RLV_F32, RLV_F32, init), split(RLV_BF16, RLV_F32, init);
  step(split, g, still, 1);
  bool exact = true;
  for (uint32_t i = 0; i < split.n; i++) exact = exact && bits_of(split.master(i)) == bits_of(init[i]);
  check(exact, "split master: a step of size 0 keeps every bit");
  for (uint32_t t = 1; t <= 5; t++) {
    for (float& x : g) x = float(0.1 * normal());
    step(wide, g, h, t);
    step(split, g, h, t, {1, 1, 0, 0}, 1 + t % 3);
  }
  bool same = true, nearest = true;
  for (uint32_t i = 0; i < split.n; i++) {
    same = same && bits_of(split.master(i)) == bits_of(wide.master(i));
    if (i != 5)
      nearest = nearest && std::abs(split.p[i] - wide.p[i]) <=
                               std::abs(bf16_to_f32(f32_to_bf16(float(wide.p[i]))) - wide.p[i]);
  }
  check(same, "split master: bit-equal to float32 weights");
  check(nearest, "split master: the high half is a nearest bfloat16");
  check(split.m == wide.m && split.v == wide.v, "split master: moments");
  State missing(RLV_BF16, RLV_F32, init);
  ClipResult one{1, 1, 0, 0};
  check(!run(adamw, args::Adamw{missing.p.ptr(),
                                nullptr,
                                g.data(),
                                missing.m.ptr(),
                                missing.v.ptr(),
                                nullptr,
                                nullptr,
                                &one,
                                missing.n,
                                RLV_BF16,
                                RLV_F32,
                                RLV_F32,
                                1,
                                0,
                                0,
                                1,
                                0,
                                1,
                                1,
                                0,
                                0,
                                1})
             .empty(),
        "adamw: bfloat16 without remainder is an error");
}

void test_stochastic_moments() {
  const uint32_t n = 40000;
  vector<float> init(n), g(n);
  for (uint32_t i = 0; i < n; i++) init[i] = float(normal()), g[i] = i % 2 ? 0.123456f : float(normal());
  Hyper h;
  h.decay = 0;
  State wide(RLV_F32, RLV_F32, init), narrow(RLV_F32, RLV_BF16, init), threaded = narrow, reseeded = narrow;
  step(wide, g, h, 1);
  step(narrow, g, h, 1);
  step(threaded, g, h, 1, {1, 1, 0, 0}, 3);
  step(reseeded, g, h, 1, {1, 1, 0, 0}, 1, 99);
  check(narrow == threaded, "bf16 moments: thread count changes bits");
  check(!(narrow == reseeded), "bf16 moments: the seed matters");
  bool neighbour = true, documented = true;
  double bias = 0, variance = 0;
  uint32_t different = 0;
  for (uint32_t i = 0; i < n; i++) {
    const float m = float(wide.m[i]);
    const uint32_t down = bits_of(m) & 0xffff0000u, up = down + 0x10000;
    neighbour = neighbour && (float(narrow.m[i]) == float_of(down) || float(narrow.m[i]) == float_of(up));
    const uint32_t word = philox(3, 4, i, 1, 0, 0).w[0], word_v = philox(3, 4, i, 1, 1, 0).w[0];
    documented = documented && bits_of(float(narrow.m[i])) == ((bits_of(m) + (word >> 16)) & 0xffff0000u) &&
                 bits_of(float(narrow.v[i])) == ((bits_of(float(wide.v[i])) + (word_v >> 16)) & 0xffff0000u);
    const double share = double(bits_of(m) & 0xffff) / 65536;  // the chance of rounding away from zero
    bias += (float(narrow.m[i]) == float_of(up) ? 1.0 : 0.0) - share;
    variance += share * (1 - share);
    different += narrow.m[i] != reseeded.m[i];
  }
  check(neighbour, "bf16 moments: one of the two neighbours");
  check(documented, "bf16 moments: the documented random bits");
  check(std::abs(bias) < 4 * std::sqrt(variance), "bf16 moments: unbiased");
  check(different > n / 10, "bf16 moments: seeds are independent");
  check(narrow.p == wide.p, "bf16 moments: the step itself uses the unrounded moments");
}

void test_layout_and_refusal() {
  for (uint32_t wdt : {RLV_F32, RLV_BF16})
    for (uint32_t mdt : {RLV_F32, RLV_BF16}) {
      vector<float> init(533), g(533);
      for (float& x : init) x = float(normal());
      for (float& x : g) x = float(normal());
      State a(wdt, mdt, init), b = a;
      for (uint32_t t = 1; t <= 3; t++) step(a, g, {}, t, {1, 0.5f, 0, 0}, t);
      for (uint32_t t = 1; t <= 3; t++) step(b, g, {}, t, {1, 0.5f, 0, 0}, 4 - t);
      check(a == b, "adamw: thread count changes bits");
      const State before = a;
      step(a, g, {}, 4, {INFINITY, 0, 1, 0}, 2);
      check(a == before, "adamw: nothing changes if the norm is not finite");
      // The first 100 elements alone: the same bits.
      State first(wdt, mdt, vector<float>(init.begin(), init.begin() + 100));
      for (uint32_t t = 1; t <= 3; t++) step(first, g, {}, t, {1, 0.5f, 0, 0});
      check(first.p == before.p.slice(0, 100) && first.m == before.m.slice(0, 100) &&
                first.v == before.v.slice(0, 100),
            "adamw: an element depends on its tensor's length");
    }
}

// Blocks of the codes of m and v, the first of them the largest.
void test_codes() {
  for (float scale : {1.0f, 0.37f, 1.9999999f, 3e-9f, 0x1p-90f, 0x1p126f}) {
    uint8_t first[256], second[256], again[256];
    for (int i = 0; i < 256; i++)
      first[i] = uint8_t(i == 0 ? 127 : i == 128 ? 0 : i), second[i] = uint8_t(255 - i);
    float m[256], v[256];
    for (int part = 0; part < 256; part += 64) {
      decode_first<64>(m + part, first + part, scale);
      decode_second<64>(v + part, second + part, scale);
    }
    check(m[0] == scale && m[255] == -scale && m[128] == 0 && v[0] == scale && v[255] == 0,
          "8-bit moments: 1 and 0 are exact");
    bool normal_values = true;
    for (int i = 0; i < 255; i++) normal_values = normal_values && std::isnormal(v[i]);
    check(normal_values, "8-bit moments: no value is subnormal");
    for (uint32_t word : {0u, 0x80008000u, 0xffffffffu}) {
      const vector<uint32_t> random(256, word);
      check(encode_first(again, m, random.data()) == scale && std::memcmp(again, first, 256) == 0,
            "8-bit moments: m keeps its codes");
      check(encode_second(again, v, random.data()) == scale && std::memcmp(again, second, 256) == 0,
            "8-bit moments: v keeps its codes");
    }
  }
  // Stored again and again, a value is kept on average; below the smallest code too, but v is never 0.
  uint32_t rounds = 4000;
  for (float x : {0.3137f, 0.0491f, 2.7e-5f, 1.7e-5f, 3e-6f}) {
    float values[256], got[256];
    for (int i = 0; i < 256; i++) values[i] = i == 0 ? 1 : i % 2 ? x : -x;
    double m_sum = 0, m_squares = 0;
    for (uint32_t round = 0; round < rounds / 256; round++) {
      uint32_t random[256];
      for (int part = 0; part < 4; part++) moment_words(random, {3, round, 5}, 512, part);
      uint8_t codes[256];
      const float scale = encode_first(codes, values, random);
      for (int part = 0; part < 256; part += 64) decode_first<64>(got + part, codes + part, scale);
      for (int i = 1; i < 256; i++) {
        const double error = (i % 2 ? got[i] : -got[i]) - double(x);
        m_sum += error, m_squares += error * error;
      }
    }
    check(std::abs(m_sum) < 4 * std::sqrt(m_squares), "8-bit moments: unbiased at " + std::to_string(x));
  }
  float values[256] = {1};
  for (int i = 1; i < 256; i++) values[i] = i % 2 ? 1e-38f : 0;
  uint8_t codes[256];
  const vector<uint32_t> down(256, 0);
  encode_second(codes, values, down.data());
  bool sound = codes[0] == 255;
  for (int i = 1; i < 256; i++) sound = sound && codes[i] == i % 2;
  check(sound, "8-bit moments: v is 0 only where it was");
}

}  // namespace

int main() {
  test_norms();
  test_goldens();
  test_split_master();
  test_stochastic_moments();
  test_layout_and_refusal();
  test_codes();
  return report();
}
