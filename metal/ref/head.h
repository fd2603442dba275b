// Log-probabilities of the language-model head, and drawing tokens.
#pragma once
#include <algorithm>
#include <numeric>
#include "random.h"
#include "value.h"

namespace rlv {
namespace ref {

// log sum exp z, shifted by the largest real part.
template <class T>
T log_sum_exp(const std::vector<T>& z) {
  double max = -INFINITY;
  for (const T& x : z) max = std::fmax(max, real_part(x));
  T sum = 0;
  for (const T& x : z) sum += std::exp(x - max);
  return std::log(sum) + max;
}

// z = (x * w^T)*inv_temp; lse = log sum exp z; logprob = z[target] - lse; entropy = lse - sum softmax(z)*z.
struct LogprobFwd {
  static Fields fields(const args::LogprobFwd& a) {
    return {output(a.logprob, RLV_F32, a.rows),
            output(a.lse, RLV_F32, a.rows),
            output(a.entropy, RLV_F32, a.rows),
            input(a.x, a.dt, size_t(a.rows) * a.cols),
            weight(a.w, a.dt, a.vocab, a.cols),
            other(),
            other(),
            output(a.again, RLV_F32, a.rows)};
  }
  template <class T>
  static void run(const args::LogprobFwd& a, Values<T>& v, Errors& e) {
    const uint32_t* targets = static_cast<const uint32_t*>(a.targets);
    std::vector<T> z(a.vocab);
    for (size_t t = 0; t < a.rows; t++) {
      if (targets[t] >= a.vocab) {
        e.fail("logprob_fwd: target outside the vocabulary", targets[t]);
        continue;
      }
      for (size_t j = 0; j < a.vocab; j++)
        z[j] = dot(v[3] + t * a.cols, v[4] + j * a.cols, a.cols) * double(a.inv_temp);
      const T lse = log_sum_exp(z);
      T mean = 0;
      for (const T& x : z) mean += std::exp(x - lse) * x;
      v[0][t] = z[targets[t]] - lse;
      v[1][t] = lse;
      v[2][t] = lse - mean;
      if (v[7]) v[7][t] = v[0][t];
    }
  }
};

// Tokens that top-k, top-p and min-p leave, in this order (transformers' logits processors): top-k keeps all
// that equal the k-th largest; top-p drops the ascending tail (ties by index) whose cumulative probability is
// at most 1 - top_p, but never the last one; min-p drops p < min_p * p_max.
inline std::vector<bool> kept_tokens(const std::vector<double>& z, uint32_t top_k, double top_p,
                                     double min_p) {
  const size_t n = z.size();
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return z[a] < z[b]; });
  const double max = z[order.back()];
  std::vector<bool> kept(n, true);
  if (top_k > 0 && top_k < n)
    for (size_t j = 0; j < n; j++) kept[j] = z[j] >= z[order[n - top_k]];
  if (top_p < 1) {
    double total = 0, below = 0;
    for (size_t j = 0; j < n; j++) total += kept[j] ? std::exp(z[j] - max) : 0;
    for (size_t i = 0; i + 1 < n; i++) {
      if (!kept[order[i]]) continue;
      below += std::exp(z[order[i]] - max);
      if (below <= (1 - top_p) * total) kept[order[i]] = false;
    }
  }
  if (min_p > 0)
    for (size_t j = 0; j < n; j++) kept[j] = kept[j] && (std::exp(z[j] - max) >= std::fmin(min_p, 1));
  return kept;
}

// The first token at which the cumulative weight of kept tokens, in index order, passes u of the whole.
inline uint32_t draw(const std::vector<double>& z, const std::vector<bool>& kept, double u) {
  const double max = *std::max_element(z.begin(), z.end());
  double total = 0, below = 0;
  for (size_t j = 0; j < z.size(); j++) total += kept[j] ? std::exp(z[j] - max) : 0;
  uint32_t chosen = 0;
  for (size_t j = 0; j < z.size(); j++) {
    if (!kept[j] || z[j] == -INFINITY) continue;
    chosen = uint32_t(j);
    below += std::exp(z[j] - max);
    if (below > u * total) break;
  }
  return chosen;
}

// Greedy: the lowest index of the largest logit. logprob is that of the whole distribution.
inline void sample(const args::Sample& a, Errors& e) {
  if (a.vocab == 0) return e.fail("sample: empty vocabulary");
  const float* logits = static_cast<const float*>(a.logits);
  const uint32_t* counters = static_cast<const uint32_t*>(a.counters);
  uint32_t* ids = static_cast<uint32_t*>(a.ids);
  float* logprob = static_cast<float*>(a.logprob);
  float* lses = static_cast<float*>(a.lse);
  float* entropies = static_cast<float*>(a.entropy);
  for (uint32_t b = 0; b < a.batch; b++, logits += a.vocab, counters += 4) {
    std::vector<double> z(a.vocab);
    for (size_t j = 0; j < a.vocab; j++) z[j] = double(logits[j]) * a.inv_temp;
    const double lse = log_sum_exp(z);
    if (!std::isfinite(lse)) {
      e.fail("sample: logits are not finite", b);
      ids[b] = 0;
      logprob[b] = NAN;
      if (lses) lses[b] = NAN;
      if (entropies) entropies[b] = NAN;
      continue;
    }
    const double u =
        uniform(philox_word(a.seed, a.purpose, counters[0], counters[1], counters[2], counters[3]));
    ids[b] = a.greedy ? uint32_t(std::max_element(logits, logits + a.vocab) - logits)
                      : draw(z, kept_tokens(z, a.top_k, a.top_p, a.min_p), u);
    logprob[b] = float(z[ids[b]] - lse);
    if (lses) lses[b] = float(lse);
    if (entropies) {
      double entropy = lse;
      for (const double v : z)
        if (v != -INFINITY) entropy -= std::exp(v - lse) * v;
      entropies[b] = float(entropy);
    }
  }
}

}  // namespace ref
}  // namespace rlv
