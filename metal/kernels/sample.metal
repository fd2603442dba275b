// Drawing tokens from logits float32 [batch][vocab], z = logits*inv_temp.
//
// The log-probability is z[id] - lse of the unfiltered distribution, reduced exactly as logprob_fwd reduces it
// (softmax_tile.h), hence bit-equal to it. Filters come in transformers' order: top-k keeps everything >= the k-th
// largest; top-p drops the ascending tail (equal values by index) whose cumulative probability is <= 1 - top_p and
// keeps at least one; min-p drops p < min_p*p_max of what is left (Holtzman et al. 2020, arXiv:1904.09751; Nguyen et
// al. 2024, arXiv:2407.01082). They become one cutoff in (value, index), found without sorting by a search over the
// ordered bits of z, four a pass, and one in weight. The draw inverts the cumulative sum in index order, tile by
// tile, then within the tile. Masses are pairs of floats (two_float.h). Needs MSL 2.3.
//
// work[row][tile], one float4 per tile of 512: {max, sum of exp(z - max), unused, mass of what is kept}.
#include "philox.h"
#include "softmax_tile.h"
#include "two_float.h"

#define SAMPLE_THREADS 256u
#define SAMPLE_SIMDGROUPS (SAMPLE_THREADS / RLV_SIMD)
#define SAMPLE_DIGITS 16u

METAL_FUNC float scaled(device const float* logits, uint j, uint vocab, float inv_temp) {
  return j < vocab ? logits[j] * inv_temp : -INFINITY;
}

// A simdgroup has a tile. Grid (vocab/4096, batch), 256 threads, no threadgroup memory.
kernel void sample_tiles(constant rlv_op_sample& a [[buffer(0)]], device const float* logits [[buffer(3)]],
                         device float4* work [[buffer(5)]], uint2 group [[threadgroup_position_in_grid]],
                         uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const uint tiles = ceil_div(a.vocab, RLV_VOCAB_TILE), tile = group.x * SAMPLE_SIMDGROUPS + simdgroup;
  if (tile >= tiles) return;
  device const float* row = logits + ulong(group.y) * a.vocab;
  float z[RLV_VOCAB_TILE / RLV_SIMD];
  RLV_UNROLL
  for (uint i = 0; i < RLV_VOCAB_TILE / RLV_SIMD; i++)
    z[i] = scaled(row, tile * RLV_VOCAB_TILE + RLV_SIMD * i + lane, a.vocab, a.inv_temp);
  const TileSum sum = tile_sum(z);
  if (lane == 0) work[ulong(group.y) * tiles + tile] = float4(sum.max, sum.sum, sum.dot, 0.0f);
}

// Larger z, larger key; 0 and -0 are the same.
METAL_FUNC uint order_key(float z) {
  const uint bits = as_type<uint>(z + 0.0f);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

// Tokens at or above (key, index) in the order by value, then index, and of weight `weight` or more.
struct Cutoff {
  uint key, index;
  float weight;
};
METAL_FUNC bool keeps(Cutoff cut, uint key, uint j, float weight) {
  return (key > cut.key || (key == cut.key && j >= cut.index)) && weight >= cut.weight;
}

// What the threads of a group share.
struct SampleRow {
  device const float* logits;
  uint vocab;
  float inv_temp, max;
  uint thread_index, lane, simdgroup;
};
METAL_FUNC float z_of(SampleRow row, uint j) { return row.logits[j] * row.inv_temp; }

struct Tally {
  uint count;
  Two mass;
};

// Counts and masses of tokens of key >= `lowest` whose key begins with `prefix`, by the four bits from `shift` on.
// 16 digits x 8 simdgroups in `scratch`; the caller reads its results from the first simdgroup's place.
METAL_FUNC void tally(SampleRow row, uint prefix, uint shift, uint lowest, threadgroup Tally* scratch) {
  uint counts[SAMPLE_DIGITS];
  Two masses[SAMPLE_DIGITS];
  RLV_UNROLL
  for (uint d = 0; d < SAMPLE_DIGITS; d++) {
    counts[d] = 0;
    masses[d] = two(0.0f, 0.0f);
  }
  for (uint j = row.thread_index; j < row.vocab; j += SAMPLE_THREADS) {
    const float z = z_of(row, j);
    const uint key = order_key(z);
    if (key < lowest || (shift < 28 && key >> (shift + 4) != prefix)) continue;
    const uint digit = key >> shift & 15u;
    const float weight = exp(z - row.max);
    RLV_UNROLL
    for (uint d = 0; d < SAMPLE_DIGITS; d++)
      if (d == digit) {
        counts[d]++;
        const Two sum = two_sum(masses[d].high, weight);
        masses[d] = two(sum.high, masses[d].low + sum.low);
      }
  }
  RLV_UNROLL
  for (uint d = 0; d < SAMPLE_DIGITS; d++) {
    const uint count = simd_sum(counts[d]);
    const Two mass = simd_sum_two(fast_two_sum(masses[d].high, masses[d].low));
    if (row.lane == 0) {
      scratch[row.simdgroup * SAMPLE_DIGITS + d].count = count;
      scratch[row.simdgroup * SAMPLE_DIGITS + d].mass.high = mass.high;
      scratch[row.simdgroup * SAMPLE_DIGITS + d].mass.low = mass.low;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (row.thread_index < SAMPLE_DIGITS) {
    uint count = 0;
    Two mass = two(0.0f, 0.0f);
    for (uint s = 0; s < SAMPLE_SIMDGROUPS; s++) {
      threadgroup const Tally& part = scratch[s * SAMPLE_DIGITS + row.thread_index];
      count += part.count;
      mass = add(mass, two(part.mass.high, part.mass.low));
    }
    scratch[row.thread_index].count = count;
    scratch[row.thread_index].mass.high = mass.high;
    scratch[row.thread_index].mass.low = mass.low;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
METAL_FUNC Tally tallied(threadgroup const Tally* scratch, uint digit) {
  Tally t;
  t.count = scratch[digit].count;
  t.mass = two(scratch[digit].mass.high, scratch[digit].mass.low);
  return t;
}

// The key of the k-th largest z.
METAL_FUNC uint kth_key(SampleRow row, uint k, threadgroup Tally* scratch) {
  uint prefix = 0, above = 0;
  for (uint pass = 0; pass < 8; pass++) {
    tally(row, prefix, 28 - 4 * pass, 0, scratch);
    uint digit = SAMPLE_DIGITS - 1;
    while (digit > 0 && above + tallied(scratch, digit).count < k) above += tallied(scratch, digit--).count;
    prefix = prefix << 4 | digit;
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  return prefix;
}

// The index of the token of key `key` before which `before` others of that key come.
METAL_FUNC uint index_of_rank(SampleRow row, uint key, uint before, threadgroup uint* scratch) {
  uint seen = 0;
  for (uint first = 0; first < row.vocab; first += SAMPLE_THREADS) {
    const uint j = first + row.thread_index;
    const uint hit = j < row.vocab && order_key(z_of(row, j)) == key ? 1u : 0u;
    const uint within = simd_prefix_exclusive_sum(hit), count = simd_sum(hit);
    if (row.lane == 0) scratch[row.simdgroup] = count;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint ahead = seen + within;
    for (uint s = 0; s < SAMPLE_SIMDGROUPS; s++) {
      if (s < row.simdgroup) ahead += scratch[s];
      seen += scratch[s];
    }
    if (hit == 1 && ahead == before) scratch[SAMPLE_SIMDGROUPS] = j;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (seen > before) break;
  }
  return scratch[SAMPLE_SIMDGROUPS];
}

// Drops the ascending tail of at most (1 - top_p) of the mass of tokens that `cut` keeps, but never the last token.
METAL_FUNC void cut_tail(SampleRow row, float top_p, thread Cutoff& cut, threadgroup Tally* scratch,
                     threadgroup uint* ranks) {
  uint prefix = 0, equal = 0;
  Two below = two(0.0f, 0.0f), limit = below, mass = below;
  for (uint pass = 0; pass < 8; pass++) {
    tally(row, prefix, 28 - 4 * pass, cut.key, scratch);
    if (pass == 0) {
      Two total = two(0.0f, 0.0f);
      RLV_UNROLL
      for (uint d = 0; d < SAMPLE_DIGITS; d++) total = add(total, tallied(scratch, d).mass);
      limit = multiply(two_sum(1.0f, -top_p), total);
    }
    // The first digit whose mass does not fit, or else the last that has any token.
    uint digit = 0;
    Two before = below;
    bool found = false;
    for (uint d = 0; d < SAMPLE_DIGITS && !found; d++) {
      const Tally t = tallied(scratch, d);
      if (t.count == 0) continue;
      digit = d;
      equal = t.count;
      mass = t.mass;
      before = below;
      found = less(limit, add(below, t.mass));
      if (!found) below = add(below, t.mass);
    }
    below = before;
    prefix = prefix << 4 | digit;
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  // Of `equal` tokens of one value, each of mass/equal, as many go as fit: the one of lowest index first.
  const Two each = divide(mass, two(float(equal), 0.0f)), room = add(limit, negative(below));
  uint dropped = 0;
  if (each.high > 0.0f) dropped = uint(clamp(room.high / each.high, 0.0f, float(equal - 1)));
  while (dropped + 1 < equal && !less(limit, add(below, multiply(each, two(float(dropped + 1), 0.0f))))) dropped++;
  while (dropped > 0 && less(limit, add(below, multiply(each, two(float(dropped), 0.0f))))) dropped--;
  cut.key = prefix;
  cut.index = dropped == 0 ? 0 : index_of_rank(row, prefix, dropped, ranks);
}

// work[tile].w = mass of the tile's tokens that `cut` keeps, relative to the row's maximum.
METAL_FUNC void tile_masses(SampleRow row, Cutoff cut, device float4* work) {
  threadgroup_barrier(mem_flags::mem_device);  // all have read the tiles
  for (uint tile = row.simdgroup; tile * RLV_VOCAB_TILE < row.vocab; tile += SAMPLE_SIMDGROUPS) {
    float mass = 0.0f;
    RLV_UNROLL
    for (uint i = 0; i < RLV_VOCAB_TILE / RLV_SIMD; i++) {
      const uint j = tile * RLV_VOCAB_TILE + RLV_SIMD * i + row.lane;
      if (j >= row.vocab) continue;
      const float z = z_of(row, j), weight = exp(z - row.max);
      if (keeps(cut, order_key(z), j, weight)) mass += weight;
    }
    mass = simd_sum(mass);
    if (row.lane == 0) work[tile].w = mass;
  }
  threadgroup_barrier(mem_flags::mem_device);
}

// The lowest index of the largest logit: scaling may round different logits to one z.
METAL_FUNC uint argmax(SampleRow row, threadgroup float* values, threadgroup uint* indices) {
  float best = -INFINITY;
  uint at = RLV_NONE;
  for (uint j = row.thread_index; j < row.vocab; j += SAMPLE_THREADS)
    if (at == RLV_NONE || row.logits[j] > best) {
      best = row.logits[j];
      at = j;
    }
  const float simd_best = simd_max(best);
  const uint simd_at = simd_min(best == simd_best ? at : RLV_NONE);
  if (row.lane == 0) {
    values[row.simdgroup] = simd_best;
    indices[row.simdgroup] = simd_at;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  best = -INFINITY;
  at = RLV_NONE;
  for (uint s = 0; s < SAMPLE_SIMDGROUPS; s++) {
    if (values[s] > best || (values[s] == best && indices[s] < at)) {
      best = values[s];
      at = indices[s];
    }
  }
  return at;
}

// What is kept of a tile, relative to the row's maximum.
METAL_FUNC float mass_of(float4 tile, bool filtered, float row_max) {
  return filtered ? tile.w : tile.y * exp(tile.x - row_max);
}

// The first token at which the cumulative mass, in index order, passes u of the whole. `weights` holds a tile.
METAL_FUNC uint draw(SampleRow row, Cutoff cut, bool filtered, device const float4* work, Two u,
                 threadgroup float* weights) {
  const uint tiles = ceil_div(row.vocab, RLV_VOCAB_TILE);
  Two total = two(0.0f, 0.0f);
  for (uint t = 0; t < tiles; t++)
    total = add(total, two(mass_of(work[t], filtered, row.max), 0.0f));
  const Two target = multiply(u, total);
  Two below = two(0.0f, 0.0f), next = below;
  uint tile = RLV_NONE;  // the first whose end lies beyond the target; else the last with any mass
  for (uint t = 0; t < tiles; t++) {
    const float mass = mass_of(work[t], filtered, row.max);
    if (!(mass > 0.0f)) continue;
    tile = t;
    below = next;
    next = add(below, two(mass, 0.0f));
    if (less(target, next)) break;
  }
  for (uint i = row.thread_index; i < RLV_VOCAB_TILE; i += SAMPLE_THREADS) {
    const uint j = tile * RLV_VOCAB_TILE + i;
    const float z = j < row.vocab ? z_of(row, j) : -INFINITY, weight = exp(z - row.max);
    weights[i] = j < row.vocab && (!filtered || keeps(cut, order_key(z), j, weight)) ? weight : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint chosen = 0;
  for (uint i = 0; i < RLV_VOCAB_TILE; i++) {
    if (!(weights[i] > 0.0f)) continue;
    chosen = i;
    below = add(below, two(weights[i], 0.0f));
    if (less(target, below)) break;
  }
  return tile * RLV_VOCAB_TILE + chosen;
}

// One threadgroup of 256 threads has a row: its tiles are merged in ascending order, then drawn from. 3.6 KiB.
kernel void sample(constant rlv_op_sample& a [[buffer(0)]], device uint* ids [[buffer(1)]],
                   device float* logprob [[buffer(2)]], device const float* logits [[buffer(3)]],
                   device const uint4* counters [[buffer(4)]], device float4* work [[buffer(5)]],
                   device float* lses [[buffer(6)]], device float* entropies [[buffer(7)]],
                   device atomic_uint* error [[buffer(RLV_ERROR)]], uint b [[threadgroup_position_in_grid]],
                   uint t [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup Tally tallies[SAMPLE_DIGITS * SAMPLE_SIMDGROUPS];
  threadgroup float values[RLV_VOCAB_TILE];
  threadgroup uint ranks[SAMPLE_SIMDGROUPS + 1];
  const uint tiles = ceil_div(a.vocab, RLV_VOCAB_TILE);
  device float4* row_work = work + ulong(b) * tiles;
  const TileSum all = merged_tiles(row_work, tiles);
  const float lse = lse_of(all);
  if (!(abs(lse) < INFINITY)) {
    if (t == 0) {
      report(error, RLV_BAD_LOGITS, b);
      ids[b] = 0;
      logprob[b] = NAN;
      if (a.lse.buffer != 0) lses[b] = NAN;
      if (a.entropy.buffer != 0) entropies[b] = NAN;
    }
    return;
  }
  SampleRow row;
  row.logits = logits + ulong(b) * a.vocab;
  row.vocab = a.vocab;
  row.inv_temp = a.inv_temp;
  row.max = all.max;
  row.thread_index = t;
  row.lane = lane;
  row.simdgroup = simdgroup;

  uint id;
  if (a.greedy != 0) {
    id = argmax(row, values, ranks);
  } else {
    const bool top_k = a.top_k > 0 && a.top_k < a.vocab, top_p = a.top_p < 1.0f;
    const bool filtered = top_k || top_p || a.min_p > 0.0f;
    Cutoff cut;
    cut.key = top_k ? kth_key(row, a.top_k, tallies) : 0;
    cut.index = 0;
    cut.weight = a.min_p > 0.0f ? min(a.min_p, 1.0f) : 0.0f;
    if (top_p) cut_tail(row, a.top_p, cut, tallies, ranks);
    if (filtered) tile_masses(row, cut, row_work);
    const uint4 counter = counters[b];
    const uint word = philox_word(a.seed, a.purpose, counter.x, counter.y, counter.z, counter.w);
    // (word + 1/2)/2^32, exactly.
    const Two u = fast_two_sum(float(word >> 8) * 5.9604644775390625e-8f, (float(word & 255u) + 0.5f) * 2.3283064365386963e-10f);
    id = draw(row, cut, filtered, row_work, u, values);
  }
  if (t == 0) {
    ids[b] = id;
    logprob[b] = z_of(row, id) - lse;
    if (a.lse.buffer != 0) lses[b] = lse;
    if (a.entropy.buffer != 0) entropies[b] = entropy_of(all);
  }
}
