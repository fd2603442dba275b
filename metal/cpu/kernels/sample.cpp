// Drawing tokens. logits float32 [batch, vocab], counters u32 [batch, 4], ids u32 [batch], logprob float32
// [batch], all outputs "=". Threads take rows; a row's result depends on its logits, its counter and the
// settings alone.
//
//   z = logits*inv_temp. logprob = z[id] - lse of the unfiltered distribution, reduced exactly as logprob_fwd
//   reduces it (softmax_tile.h: tiles of 512 columns, merged in ascending order), hence bit-equal to it.
//   Filters in transformers' order: top-k keeps everything >= the k-th largest; top-p drops the ascending
//   tail (equal values by index) whose cumulative probability is <= 1 - top_p and keeps at least one; min-p
//   drops p < min_p*p_max of what is left (Holtzman et al. 2020, arXiv:1904.09751; Nguyen et al. 2024,
//   arXiv:2407.01082). All three are one cutoff in (value, index) and one in weight, found by a histogram
//   over max - z: no sort of the vocabulary. The draw inverts the cumulative sum in index order, in float64:
//   tile by tile, then within the tile. Its uniform is word 0 of Philox with key (seed, purpose) and counter
//   counters[b].
//
// Scratch (thread-local): 0 tiles, 1 weights, 2 histogram, 3 candidates.
#include "sample.h"
#include <algorithm>
#include <cmath>
#include <limits>
#include "args.gen.hpp"
#include "lanes.h"
#include "philox.h"
#include "softmax_tile.h"

namespace rlv {
namespace RLV_ISA {

namespace {

constexpr uint32_t kTile = RLV_VOCAB_TILE;
constexpr uint32_t kBuckets = 2048;
constexpr float kBucketsPerNat = 32.0f;  // the last bucket takes everything 64 nats or more below the maximum

struct Row {
  const float* logits;
  uint32_t vocab, tiles;
  float inv_temp, max, lse, entropy;
  TileSum* sums;  // [tiles]
  double* mass;   // [tiles]

  float z(uint32_t j) const { return logits[j] * inv_temp; }
  uint32_t tile_length(uint32_t t) const { return std::min(kTile, vocab - t * kTile); }
};

Row reduce(Ctx& c, const float* logits, uint32_t vocab, float inv_temp) {
  Row row{logits, vocab, uint32_t(ceil_div(vocab, kTile)), inv_temp, 0, 0, 0, nullptr, nullptr};
  row.mass = static_cast<double*>(c.local(0, row.tiles * (sizeof(double) + sizeof(TileSum))));
  row.sums = reinterpret_cast<TileSum*>(row.mass + row.tiles);
  for (uint32_t t = 0; t < row.tiles; t++)
    row.sums[t] = tile_sum(logits + size_t(t) * kTile, row.tile_length(t), inv_temp);
  TileSum all = row.sums[0];
  for (uint32_t t = 1; t < row.tiles; t++) all = merge(all, row.sums[t]);
  row.max = all.max;
  row.lse = lse_of(all);
  row.entropy = entropy_of(all);
  return row;
}

uint32_t argmax(const Row& row) {
  uint32_t best = RLV_NONE;
  for (uint32_t t = 0; t < row.tiles; t++) {
    if (row.sums[t].max != row.max) continue;
    // Scaling may round different logits to one z, so the logits themselves decide.
    for (uint32_t j = t * kTile, end = j + row.tile_length(t); j < end; j++)
      if (row.z(j) == row.max && (best == RLV_NONE || row.logits[j] > row.logits[best])) best = j;
  }
  return best;
}

// out[j] = exp(z[first + j] - origin).
void weights_of(const Row& row, uint32_t first, uint32_t n, float origin, float* out) {
  const V scale = set1(row.inv_temp), zero_at = set1(origin);
  for (uint32_t i = 0; i < n; i += W) {
    const int count = part(i, n);
    store_part(out + i, vexp(sub(mul(load_part(row.logits + first + i, count), scale), zero_at)), count);
  }
}

// Tokens at or above (z, index) in the order by value, then index; and of weight `weight` or more.
struct Cutoff {
  float z = -std::numeric_limits<float>::infinity();
  uint32_t index = 0;
  float weight = 0;
  bool keeps(float value, uint32_t j) const { return value > z || (value == z && j >= index); }
};

struct Bucket {
  double mass;
  uint32_t count;
};

inline uint32_t bucket_of(float max, float z) {
  const float d = (max - z) * kBucketsPerNat;
  return d < float(kBuckets - 1) ? uint32_t(d) : kBuckets - 1;
}

struct Candidate {
  float z;
  uint32_t index;
};

// The kept tokens of one bucket, in index order.
uint32_t collect(const Row& row, const Cutoff& cut, uint32_t bucket, Candidate* out) {
  uint32_t n = 0;
  for (uint32_t j = 0; j < row.vocab; j++) {
    const float z = row.z(j);
    if (bucket_of(row.max, z) == bucket && cut.keeps(z, j)) out[n++] = {z, j};
  }
  return n;
}

Cutoff find_cutoff(Ctx& c, const Row& row, const SampleFilter& filter, const float* weights) {
  Cutoff cut;
  const bool top_k = filter.top_k > 0 && filter.top_k < row.vocab, top_p = filter.top_p < 1.0f;
  if (filter.min_p > 0) cut.weight = std::min(filter.min_p, 1.0f);  // relative to p_max, whose weight is 1
  if (!top_k && !top_p) return cut;

  Bucket* buckets = static_cast<Bucket*>(c.local(2, kBuckets * sizeof(Bucket)));
  std::fill(buckets, buckets + kBuckets, Bucket{0, 0});
  for (uint32_t j = 0; j < row.vocab; j++) {
    Bucket& b = buckets[bucket_of(row.max, row.z(j))];
    b.mass += double(weights[j]);
    b.count++;
  }
  uint32_t last = kBuckets - 1;  // the lowest bucket that still has kept tokens
  Candidate* found = static_cast<Candidate*>(c.local(3, size_t(row.vocab) * sizeof(Candidate)));
  if (top_k) {
    uint32_t above = 0, b = 0;
    while (above + buckets[b].count < filter.top_k) above += buckets[b++].count;
    const uint32_t n = collect(row, cut, b, found);
    Candidate* kth = found + (filter.top_k - above - 1);
    std::nth_element(found, kth, found + n, [](const Candidate& x, const Candidate& y) { return x.z > y.z; });
    cut.z = kth->z;
    last = b;
    buckets[b].mass = 0;
    for (uint32_t i = 0; i < n; i++)
      if (found[i].z >= cut.z) buckets[b].mass += double(weights[found[i].index]);
  }
  if (top_p) {
    double total = 0;
    for (uint32_t b = last + 1; b-- > 0;) total += buckets[b].mass;
    const double limit = (1.0 - double(filter.top_p)) * total;
    double below = 0;
    uint32_t b = last;
    for (; b > 0 && below + buckets[b].mass <= limit; b--) below += buckets[b].mass;
    const uint32_t n = collect(row, cut, b, found);
    std::sort(found, found + n, [](const Candidate& x, const Candidate& y) {
      return x.z < y.z || (x.z == y.z && x.index < y.index);
    });
    uint32_t i = 0;
    for (; i + 1 < n; i++) {
      below += double(weights[found[i].index]);
      if (below > limit) break;
    }
    cut.z = found[i].z;
    cut.index = found[i].index;
  }
  return cut;
}

// Weights of the row relative to its maximum, 0 where dropped.
float* filtered_weights(Ctx& c, const Row& row, const SampleFilter& filter) {
  float* weights = static_cast<float*>(c.local(1, size_t(row.vocab) * sizeof(float)));
  weights_of(row, 0, row.vocab, row.max, weights);
  const Cutoff cut = find_cutoff(c, row, filter, weights);
  for (uint32_t j = 0; j < row.vocab; j++)
    if (!cut.keeps(row.z(j), j) || weights[j] < cut.weight) weights[j] = 0;
  return weights;
}

double sum_weights(const float* w, uint32_t n) {
  double s[8] = {};
  uint32_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (uint32_t j = 0; j < 8; j++) s[j] += double(w[i + j]);
  for (uint32_t j = 0; i < n; i++, j++) s[j] += double(w[i]);
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

// The tile in which the cumulative mass passes u*total, and how far into the tile. Its mass is positive.
struct Place {
  uint32_t tile;
  double rest;
};
Place find_tile(const Row& row, double u) {
  double total = 0;
  for (uint32_t t = 0; t < row.tiles; t++) total += row.mass[t];
  const double target = u * total;
  double below = 0;
  uint32_t t = 0;
  while (t + 1 < row.tiles && below + row.mass[t] <= target) below += row.mass[t++];
  return {t, target - below};
}

// The first of n weights at which their cumulative sum passes `rest`; never one of weight 0.
uint32_t find_token(const float* w, uint32_t n, double rest) {
  double below = 0;
  uint32_t chosen = 0;
  for (uint32_t j = 0; j < n; j++) {
    if (!(w[j] > 0)) continue;
    chosen = j;
    below += double(w[j]);
    if (below > rest) break;
  }
  return chosen;
}

uint32_t draw(const Row& row, double u) {
  for (uint32_t t = 0; t < row.tiles; t++) {
    const double scale = std::exp(double(row.sums[t].max) - double(row.max));  // 0 for a tile of -inf
    row.mass[t] = scale > 0 ? double(row.sums[t].sum) * scale : 0.0;
  }
  const Place at = find_tile(row, u);
  const float origin = row.sums[at.tile].max;
  alignas(64) float w[kTile];
  weights_of(row, at.tile * kTile, row.tile_length(at.tile), origin, w);
  const double scale = std::exp(double(origin) - double(row.max));
  return at.tile * kTile + find_token(w, row.tile_length(at.tile), at.rest / scale);
}

uint32_t draw_filtered(Ctx& c, const Row& row, const SampleFilter& filter, double u) {
  const float* weights = filtered_weights(c, row, filter);
  for (uint32_t t = 0; t < row.tiles; t++) row.mass[t] = sum_weights(weights + t * kTile, row.tile_length(t));
  const Place at = find_tile(row, u);
  return at.tile * kTile + find_token(weights + at.tile * kTile, row.tile_length(at.tile), at.rest);
}

}  // namespace

bool sample_distribution(Ctx& c, const float* logits, uint32_t vocab, float inv_temp,
                         const SampleFilter& filter, float* probs) {
  const Row row = reduce(c, logits, vocab, inv_temp);
  if (!std::isfinite(row.lse)) return false;
  const float* weights = filtered_weights(c, row, filter);
  double total = 0;
  for (uint32_t t = 0; t < row.tiles; t++) total += sum_weights(weights + t * kTile, row.tile_length(t));
  for (uint32_t j = 0; j < vocab; j++) probs[j] = float(double(weights[j]) / total);
  return true;
}

void sample(Ctx& c, const args::Sample& a) {
  if (a.vocab == 0) return c.fail("sample: empty vocabulary");
  const SampleFilter filter{a.top_k, a.top_p, a.min_p};
  const bool filtered = (a.top_k > 0 && a.top_k < a.vocab) || a.top_p < 1.0f || a.min_p > 0;
  uint32_t* ids = static_cast<uint32_t*>(a.ids);
  float* logprob = static_cast<float*>(a.logprob);
  float* lse = static_cast<float*>(a.lse);
  float* entropy = static_cast<float*>(a.entropy);
  const Range rows = split(a.batch, c);
  for (uint32_t b = rows.begin; b < rows.end; b++) {
    const Row row = reduce(c, static_cast<const float*>(a.logits) + size_t(b) * a.vocab, a.vocab, a.inv_temp);
    if (!std::isfinite(row.lse)) {
      c.fail("sample: logits are not finite", b);
      ids[b] = 0;
      logprob[b] = std::numeric_limits<float>::quiet_NaN();
      if (lse) lse[b] = logprob[b];
      if (entropy) entropy[b] = logprob[b];
      continue;
    }
    const uint32_t* k = static_cast<const uint32_t*>(a.counters) + size_t(b) * 4;
    const double u = philox_uniform(philox(a.seed, a.purpose, k[0], k[1], k[2], k[3]).w[0]);
    ids[b] = a.greedy ? argmax(row) : filtered ? draw_filtered(c, row, filter, u) : draw(row, u);
    logprob[b] = row.z(ids[b]) - row.lse;
    if (lse) lse[b] = row.lse;
    if (entropy) entropy[b] = row.entropy;
  }
}

}  // namespace RLV_ISA
}  // namespace rlv
