// Tests of `sample` and Philox on one instruction set, without the library: g++ -DRLV_ISA=...
// -Imetal/include, run from the project's root. Truth: Random123's known answers, the goldens of
// transformers' logits warpers, a float64 reference that sorts, and chi-square tests of drawn frequencies.
#include "../../metal/cpu/kernels/sample.cpp"
#include "goldens.h"
#include "kernel_harness.h"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

void test_philox() {
  struct Known {
    uint32_t key[2], counter[4], words[4];
  };
  const uint32_t ones = 0xffffffffu;
  const Known known[] = {
      // Random123's kat_vectors: philox 4x32 10
      {{0, 0}, {0, 0, 0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{ones, ones}, {ones, ones, ones, ones}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0xa4093822, 0x299f31d0},
       {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
  for (const Known& k : known) {
    const PhiloxWords w = philox(k.key[0], k.key[1], k.counter[0], k.counter[1], k.counter[2], k.counter[3]);
    check(std::equal(w.w, w.w + 4, k.words), "philox: known answers");
  }
  uint32_t row[64];
  philox_row<64>(row, 5, 6, ones - 10, 7, 8, 9);
  bool same = true;
  for (uint32_t i = 0; i < 64; i++) same = same && row[i] == philox(5, 6, ones - 10 + i, 7, 8, 9).w[0];
  check(same, "philox_row: consecutive counters");
  check(philox_uniform(0) > 0 && philox_uniform(ones) < 1, "philox_uniform: inside (0, 1)");
}

struct Settings {
  float inv_temp = 1;
  SampleFilter filter{0, 1, 0};
  uint32_t seed = 1, greedy = 0;
};
struct Drawn {
  vector<uint32_t> ids;
  vector<float> logprob;
  std::string error;
  bool operator==(const Drawn& o) const {
    return ids == o.ids && error == o.error &&
           std::memcmp(logprob.data(), o.logprob.data(), logprob.size() * 4) == 0;
  }
};
// Row b draws with counter {first + b, 1, 2, 3}.
Drawn draw_rows(const vector<float>& logits, uint32_t vocab, const Settings& s, uint32_t first = 0,
                uint32_t threads = 1) {
  const uint32_t batch = uint32_t(logits.size() / vocab);
  Drawn d{vector<uint32_t>(batch), vector<float>(batch), ""};
  vector<uint32_t> counters;
  for (uint32_t b = 0; b < batch; b++) counters.insert(counters.end(), {first + b, 1, 2, 3});
  d.error = run(sample,
                args::Sample{d.ids.data(), d.logprob.data(), logits.data(), counters.data(), nullptr, nullptr,
                             nullptr, batch, vocab, s.seed, 1, s.inv_temp, s.filter.top_k, s.filter.top_p,
                             s.filter.min_p, s.greedy},
                threads);
  return d;
}

vector<float> distribution(const float* logits, uint32_t vocab, float inv_temp, const SampleFilter& filter) {
  struct Call {
    const float* logits;
    uint32_t vocab;
    float inv_temp;
    SampleFilter filter;
    vector<float>* probs;
  };
  vector<float> probs(vocab);
  run<Call>(
      [](Ctx& c, const Call& a) {
        check(sample_distribution(c, a.logits, a.vocab, a.inv_temp, a.filter, a.probs->data()),
              "finite logits");
      },
      Call{logits, vocab, inv_temp, filter, &probs});
  return probs;
}

void test_goldens() {
  const vector<goldens::Case> cases = goldens::cases("sampling", "");
  check(cases.size() >= 10, "sampling goldens: found " + std::to_string(cases.size()));
  for (const goldens::Case& g : cases) {
    const vector<double>&probs = g["probs"], &keep = g["keep"];
    const uint32_t vocab = uint32_t(goldens::numbers(g.json, "shape")[1]);
    const SampleFilter filter{uint32_t(goldens::number(g.json, "top_k", 0)),
                              float(goldens::number(g.json, "top_p", 1)),
                              float(goldens::number(g.json, "min_p", 0))};
    const float inv_temp = float(1 / goldens::number(g.json, "temperature", 1));
    const vector<float> logits(g["logits"].begin(), g["logits"].end());
    double error = 0;
    bool same = true;
    for (size_t at = 0; at < logits.size(); at += vocab) {
      const vector<float> got = distribution(&logits[at], vocab, inv_temp, filter);
      for (uint32_t j = 0; j < vocab; j++) {
        error = std::max(error, std::abs(got[j] - probs[at + j]));
        // A survivor of subnormal probability counts as dropped: it cannot be drawn.
        if (probs[at + j] > 1.2e-38 || !keep[at + j]) same = same && (got[j] > 0) == (keep[at + j] != 0);
      }
    }
    check(error <= 1e-6, g.name + ": probabilities");
    check(same, g.name + ": survivors");
  }
}

// The rules as written, in float64, by sorting. ambiguous: some cumulative is within 1e-6 of the threshold.
vector<double> reference(const float* logits, uint32_t n, float inv_temp, const SampleFilter& f,
                         bool& ambiguous) {
  vector<double> z(n), p(n);
  for (uint32_t j = 0; j < n; j++) z[j] = double(logits[j] * inv_temp);
  if (f.top_k > 0 && f.top_k < n) {
    vector<double> sorted = z;
    std::sort(sorted.begin(), sorted.end(), std::greater<double>());
    for (double& x : z)
      if (x < sorted[f.top_k - 1]) x = -INFINITY;
  }
  const auto softmax = [&] {
    const double max = *std::max_element(z.begin(), z.end());
    double total = 0;
    for (uint32_t j = 0; j < n; j++) total += p[j] = std::exp(z[j] - max);
    for (double& x : p) x /= total;
  };
  softmax();
  if (f.top_p < 1) {
    vector<uint32_t> order(n);
    for (uint32_t j = 0; j < n; j++) order[j] = j;
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return z[a] < z[b]; });
    double cumulative = 0;
    for (uint32_t i = 0; i + 1 < n; i++) {
      cumulative += p[order[i]];
      if (std::abs(cumulative - (1 - double(f.top_p))) < 1e-6) ambiguous = true;
      if (cumulative <= 1 - double(f.top_p)) z[order[i]] = -INFINITY;
    }
    softmax();
  }
  if (f.min_p > 0) {
    const double max = *std::max_element(p.begin(), p.end());
    for (uint32_t j = 0; j < n; j++) {
      if (std::abs(p[j] / max - f.min_p) < 1e-6) ambiguous = true;
      if (p[j] < f.min_p * max) z[j] = -INFINITY;
    }
    softmax();
  }
  return p;
}

void test_filters() {
  int compared = 0;
  for (int trial = 0; trial < 400; trial++) {
    const uint32_t n = 1 + engine() % (trial % 4 == 0 ? 3000 : 600);
    const double scale = (trial % 3 + 1) * 2.0;
    vector<float> logits(n);
    for (float& l : logits) l = float(scale * normal());
    if (trial % 2)
      for (float& l : logits) l = std::round(l * 2) / 2;  // ties everywhere
    if (trial % 5 == 0)
      for (uint32_t j = 1; j < n; j += 3) logits[j] = -kInf;
    const SampleFilter filter{trial % 3 ? uint32_t(engine() % (n + 2)) : 0,
                              trial % 4 ? float(engine() % 1000) / 1000 : 1.0f,
                              trial % 5 < 2 ? float(engine() % 300) / 1000 : 0.0f};
    bool ambiguous = false;
    const vector<double> want = reference(logits.data(), n, 0.8f, filter, ambiguous);
    if (ambiguous) continue;
    compared++;
    const vector<float> got = distribution(logits.data(), n, 0.8f, filter);
    double error = 0;
    bool same = true;
    for (uint32_t j = 0; j < n; j++) {
      error = std::max(error, std::abs(got[j] - want[j]));
      same = same && (got[j] > 0) == (want[j] > 1e-37);
    }
    check(error < 2e-6 && same, "filters against the sorting reference, trial " + std::to_string(trial));
  }
  check(compared > 200, "filters: compared only " + std::to_string(compared));
}

// Wilson-Hilferty: a chi-square value as a standard normal one.
double chi_square_z(const vector<double>& expected, const vector<uint32_t>& seen) {
  double chi = 0, rest_expected = 0, rest_seen = 0;
  int cells = 0;
  for (size_t j = 0; j < expected.size(); j++) {
    if (expected[j] < 8) {
      rest_expected += expected[j], rest_seen += seen[j];
    } else {
      chi += (seen[j] - expected[j]) * (seen[j] - expected[j]) / expected[j];
      cells++;
    }
  }
  if (rest_expected >= 8)
    chi += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected, cells++;
  const double k = cells - 1;
  return (std::cbrt(chi / k) - (1 - 2 / (9 * k))) / std::sqrt(2 / (9 * k));
}

void test_frequencies() {
  const uint32_t draws = 60000;
  const SampleFilter filters[] = {{0, 1, 0}, {40, 1, 0}, {0, 0.9f, 0}, {0, 1, 0.05f}, {300, 0.95f, 0.01f}};
  for (uint32_t vocab : {7u, 1300u}) {
    vector<float> logits(vocab);
    for (float& l : logits) l = float(1.5 * normal());
    logits[vocab / 2] = -kInf;
    for (const SampleFilter& filter : filters) {
      Settings s;
      s.inv_temp = 0.9f, s.filter = filter, s.seed = vocab;
      vector<uint32_t> seen(vocab);
      bool allowed = true;
      const vector<float> p = distribution(logits.data(), vocab, s.inv_temp, filter);
      vector<float> batch;
      for (int b = 0; b < 1000; b++) batch.insert(batch.end(), logits.begin(), logits.end());
      for (uint32_t first = 0; first < draws; first += 1000)
        for (uint32_t id : draw_rows(batch, vocab, s, first).ids) {
          allowed = allowed && id < vocab && p[id] > 0;
          if (id < vocab) seen[id]++;
        }
      vector<double> expected;
      for (float x : p) expected.push_back(double(x) * draws);
      check(allowed, "sample: a dropped token was drawn");
      const double z = chi_square_z(expected, seen);
      check(z < 4 && z > -4, "sample: frequencies, z = " + std::to_string(z));
    }
  }
}

void test_rows() {
  const uint32_t vocab = 1777, batch = 7;
  vector<float> logits(vocab * batch);
  for (float& l : logits) l = float(3 * normal());
  for (const SampleFilter& filter : {SampleFilter{0, 1, 0}, SampleFilter{50, 0.9f, 0.01f}})
    for (uint32_t greedy : {0u, 1u}) {
      Settings s;
      s.inv_temp = 1.25f, s.filter = filter, s.greedy = greedy;
      const Drawn all = draw_rows(logits, vocab, s, 100);
      for (uint32_t threads = 2; threads <= 3; threads++)
        check(draw_rows(logits, vocab, s, 100, threads) == all, "sample: thread count changes bits");
      for (uint32_t b = 0; b < batch; b++) {
        const vector<float> row(&logits[b * vocab], &logits[b * vocab] + vocab);
        const Drawn alone = draw_rows(row, vocab, s, 100 + b);
        check(alone.ids[0] == all.ids[b] && alone.logprob[0] == all.logprob[b],
              "sample: a row depends on its batch");
        bool ignored = false;
        const double p = reference(row.data(), vocab, s.inv_temp, {0, 1, 0}, ignored)[all.ids[b]];
        check(std::abs(all.logprob[b] - std::log(p)) < 2e-6 * (1 + std::abs(std::log(p))),
              "sample: logprob is that of the unfiltered distribution");
        if (greedy)
          check(all.ids[b] == uint32_t(std::max_element(row.begin(), row.end()) - row.begin()),
                "sample: greedy");
      }
    }
}

void test_edges() {
  Settings s, greedy, narrow;
  greedy.greedy = 1;
  narrow.filter = {1, 0.0f, 1.0f};
  vector<float> row(1100, -2.0f);
  row[700] = row[30] = row[1050] = 5;
  check(draw_rows(row, 1100, greedy).ids[0] == 30, "greedy: lowest index of equal logits");
  vector<float> near = {1.0f, std::nextafter(1.0f, 2.0f)};  // equal once scaled
  greedy.inv_temp = 1e-38f;
  check(draw_rows(near, 2, greedy).ids[0] == 1,
        "greedy: the larger logit even where scaling makes them equal");
  greedy.inv_temp = 1;
  check(draw_rows({3.0f}, 1, s).ids[0] == 0 && draw_rows({3.0f}, 1, s).logprob[0] == 0, "vocabulary of one");
  check(draw_rows({3.0f}, 1, narrow).ids[0] == 0, "vocabulary of one, filtered");
  const uint32_t survivor = draw_rows(row, 1100, narrow).ids[0];
  check(row[survivor] == 5, "the narrowest filters keep a largest logit");
  vector<float> single(1100, -kInf);
  single[1099] = -80;
  for (const Settings& x : {s, greedy, narrow}) {
    const Drawn d = draw_rows(single, 1100, x);
    check(d.error.empty() && d.ids[0] == 1099 && d.logprob[0] == 0, "one finite logit among -inf");
    const vector<float> none(1100, -kInf);
    const Drawn empty = draw_rows(none, 1100, x);
    check(!empty.error.empty() && std::isnan(empty.logprob[0]), "a row of -inf is an error");
    for (uint32_t at : {0u, 1u, 511u, 512u, 900u, 1024u, 1099u})
      for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInf}) {
        const float before = row[at];
        row[at] = bad;
        const Drawn d = draw_rows(row, 1100, x);
        row[at] = before;
        check(!d.error.empty() && std::isnan(d.logprob[0]),
              "NaN or +inf at " + std::to_string(at) + " is an error");
      }
  }
  // A wide, cold row: far tiles weigh nothing and must not be reached.
  vector<float> cold(5000);
  for (uint32_t j = 0; j < 5000; j++) cold[j] = j == 2600 ? 0.0f : -200.0f - float(j % 7);
  bool right = true;
  for (uint32_t k = 0; k < 200; k++) right = right && draw_rows(cold, 5000, s, k).ids[0] == 2600;
  check(right, "a certain token is always drawn");
}

}  // namespace

int main() {
  test_philox();
  test_goldens();
  test_filters();
  test_frequencies();
  test_rows();
  test_edges();
  return report();
}
