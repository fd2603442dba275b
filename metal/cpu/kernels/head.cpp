// The language-model head fused with log-softmax, gather and entropy. x [rows][cols], w packed [vocab][cols].
// z = (x*w^T)*inv_temp; logits of a batch never exist.
//
//   logprob_fwd  a tile of 512 columns for a block of rows at a time in thread-local memory (slot 0), reduced
//   to
//                {max, sum, zsum} in `partial`; then rows merge their tiles in ascending order.
//   logprob_bwd  chunks of 512 rows x 992 columns: logits again, dz into `work`; then dw += dz^T*x and dx +=
//   dz*w
//                (float32 in the front of `work`, one chain over the vocabulary, rounded once). In bfloat16
//                dz is rounded to bfloat16 for the two products.
#include "gemm.h"
#include "softmax_tile.h"

namespace rlv {
namespace RLV_ISA {

namespace {

constexpr uint32_t kTile = RLV_VOCAB_TILE;
constexpr uint32_t kRowBlock = 4 * kTileRows;
// A piece of the logits whose gradient stays in the second-level cache, if `work` has room for it.
// 992 columns are no multiple of 1 KiB: rows of dz spread over the first-level cache.
constexpr uint32_t kVocabChunk = 992, kRowChunk = 512;
inline uint32_t row_chunk(uint32_t rows, uint32_t vocab) {
  const uint32_t tiles = (vocab + kTile - 1) / kTile * kTile;
  const uint32_t room =
      std::min<uint32_t>(rows, RLV_HEAD_ROW_CHUNK) * std::min<uint32_t>(tiles, RLV_HEAD_VOCAB_CHUNK);
  return std::min(kRowChunk, room / std::min(tiles, kVocabChunk));
}

bool targets_valid(Ctx& c, const uint32_t* targets, uint32_t rows, uint32_t vocab, const char* message) {
  for (uint32_t r = 0; r < rows; r++)
    if (targets[r] >= vocab) {
      if (c.tid == 0) c.fail(message, targets[r]);
      return false;
    }
  return true;
}

template <class T>
void forward(Ctx& c, const args::LogprobFwd& a) {
  const T* x = static_cast<const T*>(a.x);
  const T* w = static_cast<const T*>(a.w);
  const uint32_t* targets = static_cast<const uint32_t*>(a.targets);
  float* logprob = static_cast<float*>(a.logprob);
  float* lse = static_cast<float*>(a.lse);
  float* entropy = static_cast<float*>(a.entropy);
  float* partial = static_cast<float*>(a.partial);
  if (!targets_valid(c, targets, a.rows, a.vocab, "logprob_fwd: target outside the vocabulary")) return;
  const uint32_t tiles = (a.vocab + kTile - 1) / kTile;
  const uint32_t blocks = (a.rows + kRowBlock - 1) / kRowBlock;
  float* logits = static_cast<float*>(c.local(0, size_t(kRowBlock) * kTile * sizeof(float)));
  const SpacedRows<T> rows_of_x(c, x, a.rows, a.cols);

  const uint64_t all = uint64_t(tiles) * blocks;
  const uint64_t begin = all * c.tid / c.threads, end = all * (c.tid + 1) / c.threads;
  for (uint64_t i = begin; i < end; i++) {
    const uint32_t tile = uint32_t(i / blocks), r0 = uint32_t(i % blocks) * kRowBlock;
    const uint32_t rows = std::min(kRowBlock, a.rows - r0), v0 = tile * kTile;
    const uint32_t columns = std::min(kTile, a.vocab - v0);
    for (uint32_t n = 0; n < columns; n += kPanel) {
      const T* panel = w + ((v0 + n) / kPanel) * panel_elements<T>(a.cols);
      const RowTiles split_rows(rows);
      for (uint32_t t = 0; t < split_rows.count; t++) {
        float* out = logits + size_t(split_rows.begin(t)) * kTile + n;
        panel_product(int(split_rows.size(t)), rows_of_x.at(r0 + split_rows.begin(t)), rows_of_x.ld, panel,
                      a.cols, start_zero, [&](int r, uint32_t column, V value) {
                        store(out + size_t(r) * kTile + column, value);
                      });
      }
    }
    for (uint32_t r = 0; r < rows; r++) {
      const TileSum s = tile_sum(logits + size_t(r) * kTile, columns, a.inv_temp);
      float* p = partial + (size_t(r0 + r) * tiles + tile) * 4;
      p[0] = s.max;
      p[1] = s.sum;
      p[2] = s.zsum;
      const uint32_t target = targets[r0 + r];
      if (target >= v0 && target < v0 + columns)
        logprob[r0 + r] = logits[size_t(r) * kTile + target - v0] * a.inv_temp;
    }
  }
  c.barrier();
  const Range mine = split(a.rows, c);
  for (uint32_t r = mine.begin; r < mine.end; r++) {
    const float* p = partial + size_t(r) * tiles * 4;
    TileSum sum{p[0], p[1], p[2]};
    for (uint32_t t = 1; t < tiles; t++) sum = merge(sum, {p[4 * t], p[4 * t + 1], p[4 * t + 2]});
    lse[r] = lse_of(sum);
    entropy[r] = entropy_of(sum);
    logprob[r] = logprob[r] - lse[r];
    if (a.again) static_cast<float*>(a.again)[r] = logprob[r];
  }
}

template <class T>
void backward(Ctx& c, const args::LogprobBwd& a) {
  const T* x = static_cast<const T*>(a.x);
  const T* w = static_cast<const T*>(a.w);
  const uint32_t* targets = static_cast<const uint32_t*>(a.targets);
  const float* lse = static_cast<const float*>(a.lse);
  const float* entropy = static_cast<const float*>(a.entropy);
  const float* dlogprob = static_cast<const float*>(a.dlogprob);
  const float* dentropy = static_cast<const float*>(a.dentropy);
  float* logprob = static_cast<float*>(a.logprob);
  if (!targets_valid(c, targets, a.rows, a.vocab, "logprob_bwd: target outside the vocabulary")) return;
  float* dx32 = static_cast<float*>(a.work);
  T* dz = reinterpret_cast<T*>(dx32 + size_t(a.rows) * a.cols);
  const size_t per_panel = panel_elements<T>(a.cols);
  const uint32_t depth = uint32_t(per_panel / kPanel);

  const uint32_t most = row_chunk(a.rows, a.vocab);
  const SpacedRows<T> rows_of_x(c, x, a.rows, a.cols);
  for (uint32_t r0 = 0; r0 < a.rows; r0 += most) {
    const uint32_t rows = std::min(most, a.rows - r0);
    for (uint32_t v0 = 0; v0 < a.vocab; v0 += kVocabChunk) {
      const uint32_t columns = std::min<uint32_t>(kVocabChunk, a.vocab - v0);
      const uint32_t panels = (columns + kPanel - 1) / kPanel;
      const size_t ld = size_t(panels) * kPanel;
      const T* w0 = w + size_t(v0 / kPanel) * per_panel;
      const Schedule by_logits(c, rows, panels, per_panel * sizeof(T), true);
      by_logits.run(c, [&](uint32_t panel, uint32_t first, uint32_t count) {
        alignas(64) float logits[kMostRows * kPanel];
        rows_product(
            count, rows_of_x.at(r0 + first), rows_of_x.ld, w0 + panel * per_panel, a.cols,
            [&](int r, uint32_t column, V value) { store(logits + size_t(r) * kPanel + column, value); });
        const uint32_t n0 = panel * kPanel;
        for (uint32_t r = 0; r < count; r++) {
          const uint32_t row = r0 + first + r, target = targets[row] - v0 - n0;
          float* z = logits + size_t(r) * kPanel;
          const V inv_temp = set1(a.inv_temp), origin = set1(lse[row]), scale = set1(-dlogprob[row]);
          const float at_target = target < kPanel ? z[target] * a.inv_temp - lse[row] : 0.0f;
          for (uint32_t column = 0; column < kPanel; column += W) {
            const V logp = sub(mul(load(z + column), inv_temp), origin);
            const V p = vexp(logp);
            V d = mul(scale, p);
            if (dentropy) d = fnma(mul(set1(dentropy[row]), p), add(logp, set1(entropy[row])), d);
            store(z + column, d);
          }
          if (target < kPanel) {
            z[target] += dlogprob[row];
            if (logprob) logprob[row] = at_target;
          }
          // Columns beyond the vocabulary have zero weights, not zero probability.
          for (uint32_t i = columns > n0 ? columns - n0 : 0; i < kPanel; i++) z[i] = 0;
          for (uint32_t column = 0; column < kPanel; column += W)
            store_as(dz + size_t(first + r) * ld + n0 + column, mul(load(z + column), inv_temp));
        }
      });
      c.barrier();
      if (a.dw)
        weight_gradient(c, static_cast<float*>(a.dw) + size_t(v0 / kPanel) * kPanel * depth, dz, ld,
                        x + size_t(r0) * a.cols, a.cols, rows, columns, a.cols);
      const Schedule by_hidden(c, rows, (a.cols + kPanel - 1) / kPanel,
                               panel_elements<T>(columns) * sizeof(T));
      TransposedPanels<T> transposed(c, 2, by_hidden, w0, columns, a.cols);
      by_hidden.run(c, [&](uint32_t panel, uint32_t first, uint32_t tile_rows) {
        const uint32_t k0 = panel * kPanel;
        auto at = [&](int r, uint32_t column) {
          return dx32 + size_t(r0 + first + uint32_t(r)) * a.cols + k0 + column;
        };
        auto count = [&](uint32_t column) {
          return k0 + column < a.cols ? int(std::min<uint32_t>(W, a.cols - k0 - column)) : 0;
        };
        panel_product(
            int(tile_rows), dz + size_t(first) * ld, ld, transposed.at(panel), columns,
            [&](int r, uint32_t column) {
              const int n = count(column);
              return v0 == 0 || n == 0 ? zero() : load_part(at(r, column), n);
            },
            [&](int r, uint32_t column, V value) {
              const int n = count(column);
              if (n > 0) store_part(at(r, column), value, n);
            });
      });
      c.barrier();
    }
  }
  T* dx = static_cast<T*>(a.dx);
  const Range mine = split_units(uint32_t(size_t(a.rows) * a.cols), W, c);
  for (uint32_t i = mine.begin; i < mine.end; i += W) {
    const int n = int(std::min<uint32_t>(W, mine.end - i));
    store_part(dx + i, load_part(dx32 + i, n), n);
  }
}

}  // namespace

void logprob_fwd(Ctx& c, const args::LogprobFwd& a) {
  a.dt == RLV_F32 ? forward<float>(c, a) : forward<uint16_t>(c, a);
}

void logprob_bwd(Ctx& c, const args::LogprobBwd& a) {
  a.dt == RLV_F32 ? backward<float>(c, a) : backward<uint16_t>(c, a);
}

}  // namespace RLV_ISA
}  // namespace rlv
