// Products with frozen quantized weights, and the way to codes and back. Layouts: src/ops/quant.ts, quant.h.
//
//   quant_linear       y = x*w^T + bias. int8: one chain over k, then the scale. nf4: a chain per block of 64
//                      from zero, fma(scale, chain, sum) in order. Then + bias, rounded once. Panels are
//                      unpacked to the type of x in pieces that stay in the first-level cache; with bfloat16
//                      instructions and few rows, in registers. The same chains either way.
//   quant_linear_bwd   dx = dy*w (+ dx), one chain over n; panels of w^T dequantized per thread
//   quant_embed        rows of a table
//   quantize_weight, dequantize_weight
#include "quant.h"

namespace rlv {
namespace RLV_ISA {

namespace {

constexpr uint32_t kPiece = 4 * kBlock;  // columns unpacked at a time

bool whole_blocks(Ctx& c, uint32_t qt, uint32_t k, const char* message) {
  if (qt != RLV_NF4 || k % kBlock == 0) return true;
  if (c.tid == 0) c.fail(message, k);
  return false;
}

// The end of an output: the scale of int8, the bias, one rounding.
template <class Q, class Y>
struct Finish {
  const args::QuantLinear& a;
  void operator()(uint32_t row, uint32_t n, V value) const {
    if (n >= a.n) return;
    const int count = int(std::min<uint32_t>(W, a.n - n));
    if (!Q::kBlocks) value = mul(value, load(static_cast<const float*>(a.scales) + n));
    if (a.bias) value = rlv::RLV_ISA::add(value, load_part(static_cast<const float*>(a.bias) + n, count));
    store_part(static_cast<Y*>(a.y) + size_t(row) * a.n + n, value, count);
  }
};

#ifdef RLV_NATIVE_BF16_DOT

// A vector of 16 pairs from 32 codes, exact.
inline P widen_codes(const int8_t* codes) {
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(codes + 16))));
  return (P)_mm512_cvtne2ps_pbh(high, low);
}

template <int MR, class F>
void few_rows(Int8, const uint16_t* x, uint32_t k, const int8_t* panel, const float*, F&& finish) {
  V acc[MR][2];
  for (int r = 0; r < MR; r++) acc[r][0] = acc[r][1] = zero();
  auto step = [&](uint32_t p, auto pair) {
    fetch_ahead<1>(panel + size_t(p) * 2 * kPanel);
    const P b0 = widen_codes(panel + size_t(p) * 2 * kPanel),
            b1 = widen_codes(panel + size_t(p) * 2 * kPanel + 32);
#pragma GCC unroll 12
    for (int r = 0; r < MR; r++) {
      const P v = set1_pair(pair(x + size_t(r) * k + size_t(p) * 2));
      acc[r][0] = dot_pairs(acc[r][0], v, b0);
      acc[r][1] = dot_pairs(acc[r][1], v, b1);
    }
  };
  for (uint32_t p = 0; p < k / 2; p++) step(p, pair_at);
  if (k % 2) step(k / 2, [](const uint16_t* at) { return uint32_t(*at); });
  for (int r = 0; r < MR; r++) {
    finish(r, 0, acc[r][0]);
    finish(r, W, acc[r][1]);
  }
}

// One panel after the other: memory is fetched ahead only where it is read in order, which is worth more than
// the latency that several chains side by side would hide.
template <int MR, class F>
void few_rows(Nf4, const uint16_t* x, uint32_t k, const uint16_t* codes, const float* scales, F&& finish) {
  uint16_t t[32];  // the 16 codes twice: a lookup sees five bits, four of them a code
  for (uint32_t i = 0; i < 32; i++) t[i] = f32_to_bf16(kNf4[i % 16]);
  const P table = load_pairs(t);
  V total[MR][2];
  for (int r = 0; r < MR; r++) total[r][0] = total[r][1] = zero();
  for (uint32_t k0 = 0; k0 < k; k0 += kBlock) {
    V acc[MR][2];
    for (int r = 0; r < MR; r++) acc[r][0] = acc[r][1] = zero();
    for (uint32_t k1 = k0; k1 < k0 + kBlock; k1 += 8) {
      const uint16_t* at = codes + Nf4::codes_at(k1);
      fetch_ahead<2>(at);
      const P words[2] = {load_pairs(at), load_pairs(at + kPanel)};
#pragma GCC unroll 4
      for (int s = 0; s < 4; s++) {
        const P b0 = _mm512_permutexvar_epi16(_mm512_srli_epi16(words[0], 4 * s), table);
        const P b1 = _mm512_permutexvar_epi16(_mm512_srli_epi16(words[1], 4 * s), table);
#pragma GCC unroll 12
        for (int r = 0; r < MR; r++) {
          const P v = set1_pair(pair_at(x + size_t(r) * k + k1 + size_t(s) * 2));
          acc[r][0] = dot_pairs(acc[r][0], v, b0);
          acc[r][1] = dot_pairs(acc[r][1], v, b1);
        }
      }
    }
    const float* scale = scales + size_t(k0 / kBlock) * kPanel;
    for (int v = 0; v < 2; v++) {
      const V s = load(scale + v * W);
      for (int r = 0; r < MR; r++) total[r][v] = fma(s, acc[r][v], total[r][v]);
    }
  }
  for (int r = 0; r < MR; r++) {
    finish(r, 0, total[r][0]);
    finish(r, W, total[r][1]);
  }
}

template <class Q, class F>
void few_rows(int rows, const uint16_t* x, uint32_t k, const typename Q::Code* codes, const float* scales,
              F&& finish) {
  // clang-format off
  switch (rows) {
#define CASE(n) case n: return few_rows<n>(Q(), x, k, codes, scales, finish);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
  }
  // clang-format on
}

template <class Q, class Y>
bool linear_in_registers(Ctx& c, const args::QuantLinear& a, const uint16_t* x) {
  const RowTiles rows(a.m);
  if (rows.count > 2) return false;
  const Quantized<Q> w(a.codes, a.scales, a.k);
  const Finish<Q, Y> finish{a};
  const Range mine = split(uint32_t(ceil_div(a.n, kPanel)), c);
  for (uint32_t p = mine.begin; p < mine.end; p++)
    for (uint32_t t = 0; t < rows.count; t++) {
      const uint32_t r0 = rows.begin(t);
      few_rows<Q>(
          int(rows.size(t)), x + size_t(r0) * a.k, a.k, w.panel(p), w.scale(p, 0),
          [&](int r, uint32_t column, V value) { finish(r0 + uint32_t(r), p * kPanel + column, value); });
    }
  return true;
}
#endif

template <class Q, class Y>
bool linear_in_registers(Ctx&, const args::QuantLinear&, const float*) {
  return false;
}
#ifndef RLV_NATIVE_BF16_DOT
template <class Q, class Y>
bool linear_in_registers(Ctx&, const args::QuantLinear&, const uint16_t*) {
  return false;
}
#endif

// Panels in pieces of 256 columns, each for all row tiles of this thread; sums wait in scratch between
// pieces.
template <class Q, class T, class Y>
void linear(Ctx& c, const args::QuantLinear& a) {
  const T* x = static_cast<const T*>(a.x);
  if (linear_in_registers<Q, Y>(c, a, x)) return;
  const Quantized<Q> w(a.codes, a.scales, a.k);
  const Finish<Q, Y> finish{a};
  const RowTiles rows(a.m);
  const uint32_t panels = uint32_t(ceil_div(a.n, kPanel));
  const uint64_t all = uint64_t(panels) * rows.count;
  // Few rows: whole panels, so that every weight is read by one thread.
  const bool whole = rows.count <= 2 && panels >= c.threads;
  const Range mine = split(panels, c);
  uint64_t i = whole ? uint64_t(mine.begin) * rows.count : all * c.tid / c.threads;
  const uint64_t end = whole ? uint64_t(mine.end) * rows.count : all * (c.tid + 1) / c.threads;
  T* piece = static_cast<T*>(c.local(0, size_t(kPiece) * kPanel * sizeof(T)));
  float* sums = static_cast<float*>(c.local(1, size_t(a.m) * kPanel * sizeof(float)));
  while (i < end) {
    const uint32_t p = uint32_t(i / rows.count), t0 = uint32_t(i % rows.count);
    const uint32_t t1 = uint32_t(std::min<uint64_t>(rows.count, t0 + (end - i)));
    i += t1 - t0;
    for (uint32_t k0 = 0; k0 < a.k; k0 += kPiece) {
      const uint32_t depth = std::min(kPiece, a.k - k0);
      unpack_codes(Q(), w.panel(p) + Q::codes_at(k0), depth, piece);
      for (uint32_t t = t0; t < t1; t++) {
        const uint32_t r0 = rows.begin(t);
        auto at = [&](int r, uint32_t column) { return sums + (r0 + uint32_t(r)) * size_t(kPanel) + column; };
        auto product = [&](uint32_t k1, uint32_t length, auto&& start, auto&& done) {
          panel_product(int(rows.size(t)), x + size_t(r0) * a.k + k0 + k1, a.k, piece + size_t(k1) * kPanel,
                        length, start, done);
        };
        if constexpr (Q::kBlocks) {
          for (uint32_t k1 = 0; k1 < depth; k1 += kBlock) {
            const float* scale = w.scale(p, k0 + k1);
            const bool first = k0 + k1 == 0;
            product(k1, kBlock, start_zero, [&](int r, uint32_t column, V value) {
              store(at(r, column), fma(load(scale + column), value, first ? zero() : load(at(r, column))));
            });
          }
        } else {
          product(
              0, depth, [&](int r, uint32_t column) { return k0 == 0 ? zero() : load(at(r, column)); },
              [&](int r, uint32_t column, V value) { store(at(r, column), value); });
        }
      }
    }
    for (uint32_t r = rows.begin(t0); r < rows.begin(t1); r++)
      for (uint32_t column = 0; column < kPanel; column += W)
        finish(r, p * kPanel + column, a.k == 0 ? zero() : load(sums + r * size_t(kPanel) + column));
  }
}

// Columns [k0, k0+32) of w, dequantized, as a panel whose depth is n.
template <class Q, class T>
void transpose_codes(const Quantized<Q>& w, uint32_t n, uint32_t k0, T* out) {
  constexpr uint32_t kPairs = sizeof(T) == 2 ? 2 : 1;
  const uint32_t cols = std::min(kPanel, w.k - k0);
  alignas(64) float values[kPanel * kPanel];
  alignas(64) T rounded[kPanel * kPanel];
  for (uint32_t n0 = 0; n0 < n; n0 += kPanel) {
    const uint32_t p = n0 / kPanel;
    const uint32_t from = k0 / 2 * 2;
    const float* scale = w.scale(p, k0);
    unpack_codes(Q(), w.panel(p) + Q::codes_at(from), Q::kBlocks ? kPanel : cols, values);
    for (uint32_t k = 0; k < cols; k++)
      for (uint32_t lane = 0; lane < kPanel; lane += W) {
        V v = load(values + k * kPanel + lane);
        T* to = rounded + k * kPanel + lane;
        if (Q::kBlocks) {  // codes in the type of the product
          store_as(to, v);
          v = load_as(to);
        }
        store_as(to, mul(v, load(scale + lane)));
      }
    const uint32_t rows = std::min(kPanel, n - n0);
    for (uint32_t k = 0; k < kPanel; k++)
      for (uint32_t j = 0; j < (rows + kPairs - 1) / kPairs * kPairs; j++)
        out[(size_t(n0 + j) / kPairs * kPanel + k) * kPairs + (n0 + j) % kPairs] =
            k < cols && j < rows ? rounded[k * kPanel + j] : T(0);
  }
}

template <class Q, class T>
void linear_gradient(Ctx& c, const args::QuantLinearBwd& a) {
  const T* dy = static_cast<const T*>(a.dy);
  T* dx = static_cast<T*>(a.dx);
  const Quantized<Q> w(a.codes, a.scales, a.k);
  T* panel_t = static_cast<T*>(c.local(0, panel_elements<T>(a.n) * sizeof(T)));
  uint32_t ready = RLV_NONE;
  const SpacedRows<T> rows_of_dy(c, dy, a.m, a.n);
  // A panel is made once, for all rows: threads take panels.
  const Schedule schedule(c, a.m, uint32_t(ceil_div(a.k, kPanel)), kCachedWeights + 1);
  schedule.run(c, [&](uint32_t panel, uint32_t r0, uint32_t rows) {
    const uint32_t k0 = panel * kPanel;
    if (panel != ready) transpose_codes(w, a.n, k0, panel_t);
    ready = panel;
    panel_product(int(rows), rows_of_dy.at(r0), rows_of_dy.ld, panel_t, a.n, start_zero,
                  [&](int r, uint32_t column, V value) {
                    const uint32_t k = k0 + column;
                    if (k >= a.k) return;
                    const int count = int(std::min<uint32_t>(W, a.k - k));
                    T* to = dx + size_t(r0 + uint32_t(r)) * a.k + k;
                    if (a.accumulate) value = rlv::RLV_ISA::add(value, load_part(to, count));
                    store_part(to, value, count);
                  });
  });
}

template <class Q, class T>
void embed(Ctx& c, const args::QuantEmbed& a) {
  const uint32_t* ids = static_cast<const uint32_t*>(a.ids);
  const Quantized<Q> w(a.codes, a.scales, a.cols);
  const uint64_t pieces = ceil_div(a.cols, kBlock), all = a.rows * pieces;
  for (uint64_t u = all * c.tid / c.threads, end = all * (c.tid + 1) / c.threads; u < end; u++) {
    const uint32_t t = uint32_t(u / pieces), first = uint32_t(u % pieces) * kBlock;
    if (ids[t] >= a.vocab) {
      c.fail("quant_embed: id outside the vocabulary", ids[t]);
      continue;
    }
    const uint32_t panel = ids[t] / kPanel, lane = ids[t] % kPanel;
    const float scale = w.scale(panel, first)[lane];
    T* y = static_cast<T*>(a.y) + size_t(t) * a.cols;
    for (uint32_t k = first; k < std::min(a.cols, first + kBlock); k++)
      put(y + k, Q::template value<T>(w.panel(panel), lane, k) * scale);
  }
}

// Largest magnitude. Bits of magnitudes are in their order, and those of NaN above all others.
float largest(const float* x, uint32_t n) {
  uint32_t most = 0;
  for (uint32_t i = 0; i < n; i++) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    most = std::max(most, bits & 0x7fffffffu);
  }
  float magnitude;
  std::memcpy(&magnitude, &most, 4);
  return magnitude;
}

constexpr float kLimits[15] = {RLV_NF4_LIMITS};

// x as the nearest float16, ties to even; without branches, for compilers make vectors of it.
inline float rounded_to_f16(float x) {
  const float grid = 12582912.0f;  // 1.5 * 2^23: adding it rounds to whole numbers
  const float subnormal = (x * 0x1p24f + grid - grid) * 0x1p-24f;
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  bits = (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu;
  float normal;
  std::memcpy(&normal, &bits, 4);
  normal = std::fabs(normal) >= 65536.0f ? std::copysign(INFINITY, x) : normal;
  return std::fabs(x) < 0x1p-14f ? subnormal : normal;
}

template <class S>
void quantize_row(Int8, const S* row, uint32_t k, uint32_t lane, int8_t* panel, float* scales, float* x) {
  for (uint32_t i = 0; i < k; i++) x[i] = rounded_to_f16(get(row + i));
  const float most = largest(x, k), inverse = most > 0 ? 127.0f * (1.0f / most) : 0.0f;
  scales[lane] = most / 127.0f;
  for (uint32_t i = 0; i < k; i++) {
    const float c = std::nearbyintf(x[i] * inverse);
    panel[(size_t(i / 2) * kPanel + lane) * 2 + i % 2] =
        int8_t(c > -127.0f ? (c < 127.0f ? c : 127.0f) : -127.0f);
  }
}

template <class S>
void quantize_row(Nf4, const S* row, uint32_t k, uint32_t lane, uint16_t* panel, float* scales, float* x) {
  for (uint32_t k0 = 0; k0 < k; k0 += kBlock) {
    for (uint32_t i = 0; i < kBlock; i++) x[i] = get(row + k0 + i);
    float most = largest(x, kBlock);
    if (most < RLV_NF4_SMALLEST) most = 0;
    const float inverse = most > 0 ? 1.0f / most : 0.0f;
    scales[size_t(k0 / kBlock) * kPanel + lane] = most;
    uint32_t codes[kBlock] = {};
    for (uint32_t i = 0; i < kBlock; i++) x[i] *= inverse;
    for (const float limit : kLimits)
      for (uint32_t i = 0; i < kBlock; i++) codes[i] += x[i] > limit;
    for (uint32_t b = 0; b < kBlock / 8; b++)
      for (uint32_t parity = 0; parity < 2; parity++) {
        uint32_t word = 0;
        for (uint32_t s = 0; s < 4; s++) word |= codes[b * 8 + s * 2 + parity] << (4 * s);
        panel[(size_t(k0 / 8 + b) * kPanel + lane) * 2 + parity] = uint16_t(word);
      }
  }
}

template <class Q, class S>
void quantize(Ctx& c, const args::QuantizeWeight& a) {
  auto* codes = static_cast<typename Q::Code*>(a.codes);
  float* scales = static_cast<float*>(a.scales);
  float* x = static_cast<float*>(c.local(0, std::max(a.k, kBlock) * sizeof(float)));
  const Range mine = split(uint32_t(ceil_div(a.n, kPanel)), c);
  for (uint32_t p = mine.begin; p < mine.end; p++) {
    auto* panel = codes + p * Q::panel_codes(a.k);
    float* scale = scales + p * Q::panel_scales(a.k);
    std::memset(panel, 0, Q::panel_codes(a.k) * sizeof(*panel));
    std::memset(scale, 0, Q::panel_scales(a.k) * sizeof(float));
    for (uint32_t lane = 0; lane < kPanel && p * kPanel + lane < a.n; lane++)
      quantize_row(Q(), static_cast<const S*>(a.src) + (size_t(p) * kPanel + lane) * a.k, a.k, lane, panel,
                   scale, x);
  }
}

template <class Q>
void dequantize(Ctx& c, const args::DequantizeWeight& a) {
  const Quantized<Q> w(a.codes, a.scales, a.k);
  const Range mine = split(a.n, c);
  for (uint32_t row = mine.begin; row < mine.end; row++) {
    const uint32_t panel = row / kPanel, lane = row % kPanel;
    float* to = static_cast<float*>(a.dst) + size_t(row) * a.k;
    for (uint32_t k = 0; k < a.k; k++)
      to[k] = Q::template value<float>(w.panel(panel), lane, k) * w.scale(panel, k)[lane];
  }
}

template <class Q, class T>
void linear_to(Ctx& c, const args::QuantLinear& a) {
  a.ydt == RLV_F32 ? linear<Q, T, float>(c, a) : linear<Q, T, uint16_t>(c, a);
}

}  // namespace

void quant_linear(Ctx& c, const args::QuantLinear& a) {
  if (!whole_blocks(c, a.qt, a.k, "quant_linear: nf4 needs k in blocks of 64")) return;
  if (a.m == 0 || a.n == 0) return;
  if (a.qt == RLV_INT8)
    a.dt == RLV_F32 ? linear_to<Int8, float>(c, a) : linear_to<Int8, uint16_t>(c, a);
  else
    a.dt == RLV_F32 ? linear_to<Nf4, float>(c, a) : linear_to<Nf4, uint16_t>(c, a);
}

void quant_linear_bwd(Ctx& c, const args::QuantLinearBwd& a) {
  if (!whole_blocks(c, a.qt, a.k, "quant_linear_bwd: nf4 needs k in blocks of 64")) return;
  if (a.m == 0 || a.k == 0) return;
  if (a.qt == RLV_INT8)
    a.dt == RLV_F32 ? linear_gradient<Int8, float>(c, a) : linear_gradient<Int8, uint16_t>(c, a);
  else
    a.dt == RLV_F32 ? linear_gradient<Nf4, float>(c, a) : linear_gradient<Nf4, uint16_t>(c, a);
}

void quant_embed(Ctx& c, const args::QuantEmbed& a) {
  if (!whole_blocks(c, a.qt, a.cols, "quant_embed: nf4 needs columns in blocks of 64")) return;
  if (a.qt == RLV_INT8)
    a.dt == RLV_F32 ? embed<Int8, float>(c, a) : embed<Int8, uint16_t>(c, a);
  else
    a.dt == RLV_F32 ? embed<Nf4, float>(c, a) : embed<Nf4, uint16_t>(c, a);
}

void quantize_weight(Ctx& c, const args::QuantizeWeight& a) {
  if (!whole_blocks(c, a.qt, a.k, "quantize_weight: nf4 needs k in blocks of 64")) return;
  if (a.qt == RLV_INT8)
    a.sdt == RLV_F32 ? quantize<Int8, float>(c, a) : quantize<Int8, uint16_t>(c, a);
  else
    a.sdt == RLV_F32 ? quantize<Nf4, float>(c, a) : quantize<Nf4, uint16_t>(c, a);
}

void dequantize_weight(Ctx& c, const args::DequantizeWeight& a) {
  if (!whole_blocks(c, a.qt, a.k, "dequantize_weight: nf4 needs k in blocks of 64")) return;
  a.qt == RLV_INT8 ? dequantize<Int8>(c, a) : dequantize<Nf4>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
