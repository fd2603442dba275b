// Written by scripts/gen.ts from src/ops. Do not edit.
#pragma once
#include <cstddef>
#include <cstdint>
#include "ops.gen.h"

namespace rlv {
namespace args {
// dbias[n] += sum over rows of dy[m,n], in fixed blocks of 64 rows
struct BiasBwd {
  void* dbias;
  const void* dy;
  void* partial;
  uint32_t m;
  uint32_t n;
  uint32_t dt;
};
// dx[m,k] (+)= dy[m,n] * w[n,k]; w packed; one accumulation chain over n per output
struct GemmNn {
  void* dx;
  const void* dy;
  const void* w;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t accumulate;
};
// y[m,n] (+)= x[m,k] * w[n,k]^T + bias[n]; w packed in dtype dt, y in dtype ydt; float32 accumulation, one chain over k per output
struct GemmNt {
  void* y;
  const void* x;
  const void* w;
  const void* bias;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t ydt;
  uint32_t accumulate;
};
// dw[n,k] += dy^T[n,m] * x[m,k]; dw of dtype gdt (float32, or bfloat16 with dt bfloat16) in the packed layout of dtype dt; one chain over m per output, rounded once
struct GemmTn {
  void* dw;
  const void* dy;
  const void* x;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t gdt;
};
// rotate dy by -angle, then per head the RMSNorm gradient (weight present) or the identity; dweight in fixed blocks of 64 rows
struct QkNormRopeBwd {
  void* dx;
  void* dweight;
  const void* dy;
  const void* x;
  const void* weight;
  const void* positions;
  const void* rope;
  void* partial;
  uint32_t rows;
  uint32_t heads;
  uint32_t head_dim;
  uint32_t max_pos;
  float eps;
  uint32_t dt;
};
// per head: RMSNorm with weight (identity without), then rotate-half RoPE; rope[pos] = [cos(D/2), sin(D/2)]
struct QkNormRopeFwd {
  void* y;
  const void* x;
  const void* weight;
  const void* positions;
  const void* rope;
  uint32_t rows;
  uint32_t heads;
  uint32_t head_dim;
  uint32_t max_pos;
  float eps;
  uint32_t dt;
};
// dx = dres + r*(dy*w - n*mean(dy*w*n)), dweight += sum_t dy*n with n = h*r; dweight in fixed blocks of 64 rows
struct RmsNormBwd {
  void* dx;
  void* dweight;
  const void* dy;
  const void* h;
  const void* weight;
  const void* dres;
  void* partial;
  uint32_t rows;
  uint32_t cols;
  float eps;
  uint32_t dt;
};
// h = x + delta (rounded to dt); y = h / sqrt(mean(h^2) + eps) * weight. Without delta, h is x itself and h is not written
struct RmsNormFwd {
  void* y;
  void* h;
  const void* x;
  const void* delta;
  const void* weight;
  uint32_t rows;
  uint32_t cols;
  float eps;
  uint32_t dt;
};
// dq, dk, dv of attn_fwd (no cached prefix); a prefix's dk, dv is the sum over the segments that continue it, in segment order
struct AttnBwd {
  void* dq;
  void* dk;
  void* dv;
  const void* dout;
  const void* o;
  const void* lse;
  const void* q;
  const void* k;
  const void* v;
  const void* segs;
  uint32_t rows;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t n_segs;
  uint32_t pairs;
  float scale;
  uint32_t dt;
};
// one query token per sequence attends to lens[b] cached positions through its page table; bit-equal to attn_fwd
struct AttnDecode {
  void* o;
  const void* q;
  const void* kv;
  const void* table;
  const void* lens;
  uint32_t batch;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t max_pages;
  uint32_t kv_pages;
  uint32_t pairs;
  float scale;
  uint32_t dt;
};
// o = softmax(scale*q*k^T)*v over packed rows with shared prefixes (GQA), lse per token and head; never a TxT matrix
struct AttnFwd {
  void* o;
  void* lse;
  const void* q;
  const void* k;
  const void* v;
  const void* segs;
  const void* kv;
  const void* pages;
  uint32_t rows;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t n_segs;
  uint32_t n_pages;
  uint32_t kv_pages;
  uint32_t pairs;
  float scale;
  uint32_t dt;
};
// writes k, v rows into pages: slots[t] = page*16 + position%16, NONE skips the row
struct KvAppend {
  void* kv;
  const void* k;
  const void* v;
  const void* slots;
  uint32_t rows;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t kv_pages;
  uint32_t dt;
};
// copies whole pages, pairs (source, destination); sources and destinations are disjoint
struct KvCopy {
  void* kv;
  const void* pairs;
  uint32_t count;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t kv_pages;
  uint32_t dt;
};
// with s = sigmoid(gate): dgate = dy*up*s*(1+gate*(1-s)), dup = dy*gate*s
struct SwigluBwd {
  void* dgate;
  void* dup;
  const void* dy;
  const void* gate;
  const void* up;
  uint32_t n;
  uint32_t dt;
};
// y = gate*sigmoid(gate)*up, element-wise over n elements
struct SwigluFwd {
  void* y;
  const void* gate;
  const void* up;
  uint32_t n;
  uint32_t dt;
};
// dtable[ids[t]] += dy[t], tokens in ascending order; dtable float32 in the packed layout of dtype wdt
struct EmbedBwd {
  void* dtable;
  const void* ids;
  const void* dy;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  uint32_t dt;
  uint32_t wdt;
};
// y[t] = table[ids[t]]; table [vocab, cols] in the packed layout (shared with a tied head)
struct EmbedFwd {
  void* y;
  const void* ids;
  const void* table;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  uint32_t dt;
  uint32_t wdt;
};
// y[r] = x[index[r]]; an index beyond src_rows is an error of the stream
struct GatherRows {
  void* y;
  const void* x;
  const void* index;
  uint32_t rows;
  uint32_t src_rows;
  uint32_t cols;
  uint32_t dt;
};
// dx[t] = sum of dy[r] over r with index[r] = t, r ascending; zero where no row was gathered
struct GatherRowsBwd {
  void* dx;
  const void* dy;
  const void* index;
  uint32_t rows;
  uint32_t src_rows;
  uint32_t cols;
  uint32_t dt;
};
// dz_j = inv_temp*(dlogprob*(1[j=target]-p_j) - dentropy*p_j*(log p_j + H)); dx = dz*w, dw += dz^T*x; logits recomputed by chunks; logprob as logprob_fwd gives it
struct LogprobBwd {
  void* dx;
  void* dw;
  const void* x;
  const void* w;
  const void* targets;
  const void* lse;
  const void* entropy;
  const void* dlogprob;
  const void* dentropy;
  void* work;
  void* logprob;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  float inv_temp;
  uint32_t dt;
};
// z = (x*w^T)*inv_temp; lse = log sum exp z; logprob = z[target] - lse, also to again; entropy = lse - sum p*z
struct LogprobFwd {
  void* logprob;
  void* lse;
  void* entropy;
  const void* x;
  const void* w;
  const void* targets;
  void* partial;
  void* again;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  float inv_temp;
  uint32_t dt;
};
// draws ids[b] from softmax(logits*inv_temp) after top-k, top-p, min-p with Philox(key = seed, purpose; counter = counters[b]); logprob, lse, entropy unfiltered; greedy: argmax
struct Sample {
  void* ids;
  void* logprob;
  const void* logits;
  const void* counters;
  void* work;
  void* lse;
  void* entropy;
  uint32_t batch;
  uint32_t vocab;
  uint32_t seed;
  uint32_t purpose;
  float inv_temp;
  uint32_t top_k;
  float top_p;
  float min_p;
  uint32_t greedy;
};
// AdamW step scaled by result.coef; bf16 parameters carry a 16-bit remainder (exact float32 master); bf16 and 8-bit moments rounded stochastically; no change if result.nonfinite
struct Adamw {
  void* p;
  void* lo;
  const void* g;
  void* m;
  void* v;
  void* m_scale;
  void* v_scale;
  const void* result;
  uint32_t n;
  uint32_t wdt;
  uint32_t gdt;
  uint32_t mdt;
  float lr;
  float beta1;
  float beta2;
  float eps;
  float weight_decay;
  float c1;
  float c2;
  uint32_t seed;
  uint32_t tensor;
  uint32_t step;
};
// result = {norm f32, coef f32 = min(1, max_norm/(norm+1e-6)) (1 when max_norm = 0), nonfinite u32, 0}; norm = sqrt(sum of sums, in order)
struct ClipCoef {
  void* result;
  const void* sums;
  uint32_t slots;
  float max_norm;
};
// sums[slot] = sum of g^2 in float64, fixed blocks of 65536 elements, then blocks in order
struct SqNorm {
  void* sums;
  const void* g;
  void* partial;
  uint32_t n;
  uint32_t gdt;
  uint32_t slots;
  uint32_t slot;
};
// y = a + b over n elements; y may be a or b
struct Add {
  void* y;
  const void* a;
  const void* b;
  uint32_t n;
  uint32_t dt;
};
// y (dtype ydt) = x (dtype dt), round to nearest even
struct Cast {
  void* y;
  const void* x;
  uint32_t n;
  uint32_t dt;
  uint32_t ydt;
};
// copies n bytes from x to y
struct Copy {
  void* y;
  const void* x;
  uint32_t n;
};
// y[i] = value, n float32 elements
struct Fill {
  void* y;
  uint32_t n;
  float value;
};
// row-major [n,k] of dtype sdt -> packed layout of dtype dt, padding zero; lo = signed 16-bit remainder of the float32 value (dt bf16, sdt f32)
struct PackWeight {
  void* w;
  void* lo;
  const void* src;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t sdt;
};
// packed layout of dtype dt with elements of dtype edt (+ remainder lo) -> row-major [n,k] of dtype ddt
struct UnpackWeight {
  void* dst;
  const void* w;
  const void* lo;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t edt;
  uint32_t ddt;
};
// y[m,n] = residual + (x[m,k]*w[n,k]^T rounded to dt); as gemm_nt and add
struct LinearResidual {
  void* y;
  const void* residual;
  const void* x;
  const void* w;
  void* work;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
};
// y = rms_norm(h)*weight rounded to dt; q = y*wq^T + bq, k = y*wk^T + bk, v = y*wv^T + bv; as rms_norm_fwd and gemm_nt
struct NormQkv {
  void* q;
  void* k;
  void* v;
  const void* h;
  const void* weight;
  const void* wq;
  const void* wk;
  const void* wv;
  const void* bq;
  const void* bk;
  const void* bv;
  void* work;
  uint32_t m;
  uint32_t cols;
  uint32_t nq;
  uint32_t nkv;
  float eps;
  uint32_t dt;
};
// x = rms_norm(h)*weight rounded to dt; y = silu(x*wgate^T)*(x*wup^T), both products rounded to dt; as rms_norm_fwd, gemm_nt and swiglu_fwd
struct NormSwiglu {
  void* y;
  const void* h;
  const void* weight;
  const void* wgate;
  const void* wup;
  void* work;
  uint32_t m;
  uint32_t cols;
  uint32_t n;
  float eps;
  uint32_t dt;
};
// y = rope(rms_norm(q)) per head; rope(rms_norm(k)) and v go to pages: slots[t] = page*16 + position%16, NONE skips; as qk_norm_rope_fwd and kv_append
struct RopeAppend {
  void* y;
  void* kv;
  const void* q;
  const void* k;
  const void* v;
  const void* qweight;
  const void* kweight;
  const void* positions;
  const void* rope;
  const void* slots;
  void* work;
  uint32_t rows;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t max_pos;
  uint32_t kv_pages;
  float eps;
  uint32_t dt;
};
// du[m,r] = (scale where column < split, else scale2) * dy[m,n] * b[n,r] rounded to dt; dx[m,k] (+)= du * a[r,k]; da += du^T * x; db += dy^T * u; in da and db rows of du and u count as zero in columns < split where bit 0 of routes[m] is set, in the others where bit 1 is; da, db float32 in the packed layout of dtype dt; one chain per output; du is written where dx or da is wanted; routes and masked, which holds u and du with these zeros, are both given or neither
struct LoraBwd {
  void* dx;
  void* da;
  void* db;
  void* du;
  const void* dy;
  const void* x;
  const void* u;
  const void* a;
  const void* b;
  const void* routes;
  void* masked;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t r;
  uint32_t split;
  float scale;
  float scale2;
  uint32_t dt;
  uint32_t accumulate;
};
// u[m,r] = (scale where column < split, else scale2) * (x[m,k] * a[r,k]^T) rounded to dt; y[m,n] = base[m,n] + u * b[n,r]^T; one chain over k, one over r; base may be y; where bit 0 of routes[m] is set, a and b are constants in columns < split, where bit 1 is, in the others: this is for the gradient alone
struct LoraFwd {
  void* y;
  void* u;
  const void* base;
  const void* x;
  const void* a;
  const void* b;
  const void* routes;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t r;
  uint32_t split;
  float scale;
  float scale2;
  uint32_t dt;
};
// y[i] = scale * x[i], or 0 * x[i] where word (i % 256)/64 of Philox(key seed, purpose; counter (i/256)*64 + i%64, site, step, part) is below threshold
struct Dropout {
  void* y;
  const void* x;
  uint32_t n;
  uint32_t seed;
  uint32_t purpose;
  uint32_t site;
  uint32_t step;
  uint32_t part;
  uint32_t threshold;
  float scale;
  uint32_t dt;
};
// codes*scales in float32, row-major [n,k]
struct DequantizeWeight {
  void* dst;
  const void* codes;
  const void* scales;
  uint32_t n;
  uint32_t k;
  uint32_t qt;
};
// y[t] = codes*scales of row ids[t] of a quantized [vocab, cols], codes as in quant_linear, rounded to dt
struct QuantEmbed {
  void* y;
  const void* ids;
  const void* codes;
  const void* scales;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  uint32_t qt;
  uint32_t dt;
};
// y[m,n] = x[m,k] * w[n,k]^T + bias[n]; w codes and scales; int8: chain over k, times scale; nf4: chains over blocks of 64, fma(scale, chain, sum) in order; y in dtype ydt
struct QuantLinear {
  void* y;
  const void* x;
  const void* codes;
  const void* scales;
  const void* bias;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t qt;
  uint32_t dt;
  uint32_t ydt;
};
// dx[m,k] (+)= dy[m,n] * w[n,k], w = codes*scales rounded to dt; one accumulation chain over n per output
struct QuantLinearBwd {
  void* dx;
  const void* dy;
  const void* codes;
  const void* scales;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t qt;
  uint32_t dt;
  uint32_t accumulate;
};
// row-major [n,k] of dtype sdt -> codes and scales by the largest magnitude of a row (int8) or block (nf4)
struct QuantizeWeight {
  void* codes;
  void* scales;
  const void* src;
  uint32_t n;
  uint32_t k;
  uint32_t qt;
  uint32_t sdt;
};
}  // namespace args

// X(name, Struct): one line per operation, in the order of the ids.
#define RLV_OPS(X) \
  X(bias_bwd, BiasBwd) \
  X(gemm_nn, GemmNn) \
  X(gemm_nt, GemmNt) \
  X(gemm_tn, GemmTn) \
  X(qk_norm_rope_bwd, QkNormRopeBwd) \
  X(qk_norm_rope_fwd, QkNormRopeFwd) \
  X(rms_norm_bwd, RmsNormBwd) \
  X(rms_norm_fwd, RmsNormFwd) \
  X(attn_bwd, AttnBwd) \
  X(attn_decode, AttnDecode) \
  X(attn_fwd, AttnFwd) \
  X(kv_append, KvAppend) \
  X(kv_copy, KvCopy) \
  X(swiglu_bwd, SwigluBwd) \
  X(swiglu_fwd, SwigluFwd) \
  X(embed_bwd, EmbedBwd) \
  X(embed_fwd, EmbedFwd) \
  X(gather_rows, GatherRows) \
  X(gather_rows_bwd, GatherRowsBwd) \
  X(logprob_bwd, LogprobBwd) \
  X(logprob_fwd, LogprobFwd) \
  X(sample, Sample) \
  X(adamw, Adamw) \
  X(clip_coef, ClipCoef) \
  X(sq_norm, SqNorm) \
  X(add, Add) \
  X(cast, Cast) \
  X(copy, Copy) \
  X(fill, Fill) \
  X(pack_weight, PackWeight) \
  X(unpack_weight, UnpackWeight) \
  X(linear_residual, LinearResidual) \
  X(norm_qkv, NormQkv) \
  X(norm_swiglu, NormSwiglu) \
  X(rope_append, RopeAppend) \
  X(lora_bwd, LoraBwd) \
  X(lora_fwd, LoraFwd) \
  X(dropout, Dropout) \
  X(dequantize_weight, DequantizeWeight) \
  X(quant_embed, QuantEmbed) \
  X(quant_linear, QuantLinear) \
  X(quant_linear_bwd, QuantLinearBwd) \
  X(quantize_weight, QuantizeWeight)

// Scratch is read and written, and laid out as its operation likes.
enum Access : uint8_t { kRead = 1, kWrite = 2, kReadWrite = 3, kScratch = 7 };
constexpr int kMaxTensors = 12;
constexpr int kMaxParams = 14;
constexpr int kMaxWords = 42;
constexpr int kBadDtype = 100;
constexpr int kZero = 200;  // plus the parameter that is 0

inline uint64_t size(uint64_t dt) { return dt == RLV_BF16 ? 2 : dt == RLV_F8 ? 1 : 4; }
inline uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }
inline uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
inline uint64_t packed_len(uint64_t n, uint64_t k, uint64_t dt) {
  return ceil_div(n, RLV_PANEL) * RLV_PANEL * (dt == RLV_BF16 ? ceil_div(k, 2) * 2 : k);
}
inline uint64_t quant_bytes(uint64_t n, uint64_t k, uint64_t qt) {
  return ceil_div(n, RLV_PANEL) * RLV_PANEL *
         (qt == RLV_NF4 ? ceil_div(k, RLV_QUANT_BLOCK) * (RLV_QUANT_BLOCK / 2) : ceil_div(k, 2) * 2);
}
inline uint64_t quant_scales(uint64_t n, uint64_t k, uint64_t qt) {
  return ceil_div(n, RLV_PANEL) * RLV_PANEL * (qt == RLV_NF4 ? ceil_div(k, RLV_QUANT_BLOCK) : 1);
}
inline uint64_t bytes_of(const rlv_ref& r) { return uint64_t(r.length) * 16; }

inline int check_bias_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_bias_bwd*>(record);
  (void)a;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.dbias.buffer || bytes_of(a.dbias) < uint64_t(a.n)*4) return 0;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  if (!a.partial.buffer || bytes_of(a.partial) < ceil_div(uint64_t(a.m),64)*uint64_t(a.n)*4) return 2;
  return -1;
}
inline void resolve_bias_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_bias_bwd*>(record);
  *static_cast<args::BiasBwd*>(out) = args::BiasBwd{p[0], p[1], p[2], a.m, a.n, a.dt};
}
inline double flops_bias_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_bias_bwd*>(record);
  (void)a;
  return double(uint64_t(a.m)*uint64_t(a.n));
}
inline int check_gemm_nn(const void* record) {
  const auto& a = *static_cast<const rlv_op_gemm_nn*>(record);
  (void)a;
  if (a.k == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.dx.buffer || bytes_of(a.dx) < uint64_t(a.m)*uint64_t(a.k)*size(uint64_t(a.dt))) return 0;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  if (!a.w.buffer || bytes_of(a.w) < packed_len(uint64_t(a.n),uint64_t(a.k),uint64_t(a.dt))*size(uint64_t(a.dt))) return 2;
  return -1;
}
inline void resolve_gemm_nn(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_gemm_nn*>(record);
  *static_cast<args::GemmNn*>(out) = args::GemmNn{p[0], p[1], p[2], a.m, a.n, a.k, a.dt, a.accumulate};
}
inline double flops_gemm_nn(const void* record) {
  const auto& a = *static_cast<const rlv_op_gemm_nn*>(record);
  (void)a;
  return double(2*uint64_t(a.m)*uint64_t(a.n)*uint64_t(a.k));
}
inline int check_gemm_nt(const void* record) {
  const auto& a = *static_cast<const rlv_op_gemm_nt*>(record);
  (void)a;
  if (a.k == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.ydt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.ydt))) return 0;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.m)*uint64_t(a.k)*size(uint64_t(a.dt))) return 1;
  if (!a.w.buffer || bytes_of(a.w) < packed_len(uint64_t(a.n),uint64_t(a.k),uint64_t(a.dt))*size(uint64_t(a.dt))) return 2;
  if (a.bias.buffer && bytes_of(a.bias) < uint64_t(a.n)*4) return 3;
  return -1;
}
inline void resolve_gemm_nt(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_gemm_nt*>(record);
  *static_cast<args::GemmNt*>(out) = args::GemmNt{p[0], p[1], p[2], p[3], a.m, a.n, a.k, a.dt, a.ydt, a.accumulate};
}
inline double flops_gemm_nt(const void* record) {
  const auto& a = *static_cast<const rlv_op_gemm_nt*>(record);
  (void)a;
  return double(2*uint64_t(a.m)*uint64_t(a.n)*uint64_t(a.k));
}
inline int check_gemm_tn(const void* record) {
  const auto& a = *static_cast<const rlv_op_gemm_tn*>(record);
  (void)a;
  if (a.k == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.gdt > RLV_BF16) return kBadDtype;
  if (!a.dw.buffer || bytes_of(a.dw) < packed_len(uint64_t(a.n),uint64_t(a.k),uint64_t(a.dt))*size(uint64_t(a.gdt))) return 0;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.m)*uint64_t(a.k)*size(uint64_t(a.dt))) return 2;
  return -1;
}
inline void resolve_gemm_tn(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_gemm_tn*>(record);
  *static_cast<args::GemmTn*>(out) = args::GemmTn{p[0], p[1], p[2], a.m, a.n, a.k, a.dt, a.gdt};
}
inline double flops_gemm_tn(const void* record) {
  const auto& a = *static_cast<const rlv_op_gemm_tn*>(record);
  (void)a;
  return double(2*uint64_t(a.m)*uint64_t(a.n)*uint64_t(a.k));
}
inline int check_qk_norm_rope_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_qk_norm_rope_bwd*>(record);
  (void)a;
  if (a.heads == 0) return kZero + 1;
  if (a.head_dim == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.dx.buffer || bytes_of(a.dx) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 0;
  if (a.dweight.buffer && bytes_of(a.dweight) < uint64_t(a.head_dim)*4) return 1;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 2;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 3;
  if (a.weight.buffer && bytes_of(a.weight) < uint64_t(a.head_dim)*4) return 4;
  if (!a.positions.buffer || bytes_of(a.positions) < uint64_t(a.rows)*4) return 5;
  if (!a.rope.buffer || bytes_of(a.rope) < uint64_t(a.max_pos)*uint64_t(a.head_dim)*4) return 6;
  if (a.partial.buffer && bytes_of(a.partial) < ceil_div(uint64_t(a.rows),64)*uint64_t(a.head_dim)*4) return 7;
  return -1;
}
inline void resolve_qk_norm_rope_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_qk_norm_rope_bwd*>(record);
  *static_cast<args::QkNormRopeBwd*>(out) = args::QkNormRopeBwd{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], a.rows, a.heads, a.head_dim, a.max_pos, a.eps, a.dt};
}
inline double flops_qk_norm_rope_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_qk_norm_rope_bwd*>(record);
  (void)a;
  return double(11*uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim));
}
inline int check_qk_norm_rope_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_qk_norm_rope_fwd*>(record);
  (void)a;
  if (a.heads == 0) return kZero + 1;
  if (a.head_dim == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 0;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 1;
  if (a.weight.buffer && bytes_of(a.weight) < uint64_t(a.head_dim)*4) return 2;
  if (!a.positions.buffer || bytes_of(a.positions) < uint64_t(a.rows)*4) return 3;
  if (!a.rope.buffer || bytes_of(a.rope) < uint64_t(a.max_pos)*uint64_t(a.head_dim)*4) return 4;
  return -1;
}
inline void resolve_qk_norm_rope_fwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_qk_norm_rope_fwd*>(record);
  *static_cast<args::QkNormRopeFwd*>(out) = args::QkNormRopeFwd{p[0], p[1], p[2], p[3], p[4], a.rows, a.heads, a.head_dim, a.max_pos, a.eps, a.dt};
}
inline double flops_qk_norm_rope_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_qk_norm_rope_fwd*>(record);
  (void)a;
  return double(8*uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim));
}
inline int check_rms_norm_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_rms_norm_bwd*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 1;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.dx.buffer || bytes_of(a.dx) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 0;
  if (a.dweight.buffer && bytes_of(a.dweight) < uint64_t(a.cols)*4) return 1;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 2;
  if (!a.h.buffer || bytes_of(a.h) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 3;
  if (!a.weight.buffer || bytes_of(a.weight) < uint64_t(a.cols)*4) return 4;
  if (a.dres.buffer && bytes_of(a.dres) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 5;
  if (a.partial.buffer && bytes_of(a.partial) < ceil_div(uint64_t(a.rows),64)*uint64_t(a.cols)*4) return 6;
  return -1;
}
inline void resolve_rms_norm_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_rms_norm_bwd*>(record);
  *static_cast<args::RmsNormBwd*>(out) = args::RmsNormBwd{p[0], p[1], p[2], p[3], p[4], p[5], p[6], a.rows, a.cols, a.eps, a.dt};
}
inline double flops_rms_norm_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_rms_norm_bwd*>(record);
  (void)a;
  return double(8*uint64_t(a.rows)*uint64_t(a.cols));
}
inline int check_rms_norm_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_rms_norm_fwd*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 1;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 0;
  if (a.h.buffer && bytes_of(a.h) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 1;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 2;
  if (a.delta.buffer && bytes_of(a.delta) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 3;
  if (!a.weight.buffer || bytes_of(a.weight) < uint64_t(a.cols)*4) return 4;
  return -1;
}
inline void resolve_rms_norm_fwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_rms_norm_fwd*>(record);
  *static_cast<args::RmsNormFwd*>(out) = args::RmsNormFwd{p[0], p[1], p[2], p[3], p[4], a.rows, a.cols, a.eps, a.dt};
}
inline double flops_rms_norm_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_rms_norm_fwd*>(record);
  (void)a;
  return double(5*uint64_t(a.rows)*uint64_t(a.cols));
}
inline int check_attn_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_attn_bwd*>(record);
  (void)a;
  if (a.heads == 0) return kZero + 1;
  if (a.kv_heads == 0) return kZero + 2;
  if (a.head_dim == 0) return kZero + 3;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.dq.buffer || bytes_of(a.dq) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 0;
  if (!a.dk.buffer || bytes_of(a.dk) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 1;
  if (!a.dv.buffer || bytes_of(a.dv) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 2;
  if (!a.dout.buffer || bytes_of(a.dout) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 3;
  if (!a.o.buffer || bytes_of(a.o) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 4;
  if (!a.lse.buffer || bytes_of(a.lse) < uint64_t(a.rows)*uint64_t(a.heads)*4) return 5;
  if (!a.q.buffer || bytes_of(a.q) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 6;
  if (!a.k.buffer || bytes_of(a.k) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 7;
  if (!a.v.buffer || bytes_of(a.v) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 8;
  if (!a.segs.buffer || bytes_of(a.segs) < uint64_t(a.n_segs)*32) return 9;
  return -1;
}
inline void resolve_attn_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_attn_bwd*>(record);
  *static_cast<args::AttnBwd*>(out) = args::AttnBwd{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], a.rows, a.heads, a.kv_heads, a.head_dim, a.n_segs, a.pairs, a.scale, a.dt};
}
inline double flops_attn_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_attn_bwd*>(record);
  (void)a;
  return double(10*uint64_t(a.pairs)*uint64_t(a.heads)*uint64_t(a.head_dim));
}
inline int check_attn_decode(const void* record) {
  const auto& a = *static_cast<const rlv_op_attn_decode*>(record);
  (void)a;
  if (a.heads == 0) return kZero + 1;
  if (a.kv_heads == 0) return kZero + 2;
  if (a.head_dim == 0) return kZero + 3;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.o.buffer || bytes_of(a.o) < uint64_t(a.batch)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 0;
  if (!a.q.buffer || bytes_of(a.q) < uint64_t(a.batch)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 1;
  if (!a.kv.buffer || bytes_of(a.kv) < uint64_t(a.kv_pages)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*32*size(uint64_t(a.dt))) return 2;
  if (!a.table.buffer || bytes_of(a.table) < uint64_t(a.batch)*uint64_t(a.max_pages)*4) return 3;
  if (!a.lens.buffer || bytes_of(a.lens) < uint64_t(a.batch)*4) return 4;
  return -1;
}
inline void resolve_attn_decode(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_attn_decode*>(record);
  *static_cast<args::AttnDecode*>(out) = args::AttnDecode{p[0], p[1], p[2], p[3], p[4], a.batch, a.heads, a.kv_heads, a.head_dim, a.max_pages, a.kv_pages, a.pairs, a.scale, a.dt};
}
inline double flops_attn_decode(const void* record) {
  const auto& a = *static_cast<const rlv_op_attn_decode*>(record);
  (void)a;
  return double(4*uint64_t(a.pairs)*uint64_t(a.heads)*uint64_t(a.head_dim));
}
inline int check_attn_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_attn_fwd*>(record);
  (void)a;
  if (a.heads == 0) return kZero + 1;
  if (a.kv_heads == 0) return kZero + 2;
  if (a.head_dim == 0) return kZero + 3;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.o.buffer || bytes_of(a.o) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 0;
  if (a.lse.buffer && bytes_of(a.lse) < uint64_t(a.rows)*uint64_t(a.heads)*4) return 1;
  if (!a.q.buffer || bytes_of(a.q) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 2;
  if (!a.k.buffer || bytes_of(a.k) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 3;
  if (!a.v.buffer || bytes_of(a.v) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 4;
  if (!a.segs.buffer || bytes_of(a.segs) < uint64_t(a.n_segs)*32) return 5;
  if (a.kv.buffer && bytes_of(a.kv) < uint64_t(a.kv_pages)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*32*size(uint64_t(a.dt))) return 6;
  if (a.pages.buffer && bytes_of(a.pages) < uint64_t(a.n_pages)*4) return 7;
  return -1;
}
inline void resolve_attn_fwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_attn_fwd*>(record);
  *static_cast<args::AttnFwd*>(out) = args::AttnFwd{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], a.rows, a.heads, a.kv_heads, a.head_dim, a.n_segs, a.n_pages, a.kv_pages, a.pairs, a.scale, a.dt};
}
inline double flops_attn_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_attn_fwd*>(record);
  (void)a;
  return double(4*uint64_t(a.pairs)*uint64_t(a.heads)*uint64_t(a.head_dim));
}
inline int check_kv_append(const void* record) {
  const auto& a = *static_cast<const rlv_op_kv_append*>(record);
  (void)a;
  if (a.kv_heads == 0) return kZero + 1;
  if (a.head_dim == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.kv.buffer || bytes_of(a.kv) < uint64_t(a.kv_pages)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*32*size(uint64_t(a.dt))) return 0;
  if (!a.k.buffer || bytes_of(a.k) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 1;
  if (!a.v.buffer || bytes_of(a.v) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 2;
  if (!a.slots.buffer || bytes_of(a.slots) < uint64_t(a.rows)*4) return 3;
  return -1;
}
inline void resolve_kv_append(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_kv_append*>(record);
  *static_cast<args::KvAppend*>(out) = args::KvAppend{p[0], p[1], p[2], p[3], a.rows, a.kv_heads, a.head_dim, a.kv_pages, a.dt};
}
inline double flops_kv_append(const void* record) {
  const auto& a = *static_cast<const rlv_op_kv_append*>(record);
  (void)a;
  return double(0);
}
inline int check_kv_copy(const void* record) {
  const auto& a = *static_cast<const rlv_op_kv_copy*>(record);
  (void)a;
  if (a.kv_heads == 0) return kZero + 1;
  if (a.head_dim == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.kv.buffer || bytes_of(a.kv) < uint64_t(a.kv_pages)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*32*size(uint64_t(a.dt))) return 0;
  if (!a.pairs.buffer || bytes_of(a.pairs) < uint64_t(a.count)*8) return 1;
  return -1;
}
inline void resolve_kv_copy(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_kv_copy*>(record);
  *static_cast<args::KvCopy*>(out) = args::KvCopy{p[0], p[1], a.count, a.kv_heads, a.head_dim, a.kv_pages, a.dt};
}
inline double flops_kv_copy(const void* record) {
  const auto& a = *static_cast<const rlv_op_kv_copy*>(record);
  (void)a;
  return double(0);
}
inline int check_swiglu_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_swiglu_bwd*>(record);
  (void)a;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.dgate.buffer || bytes_of(a.dgate) < uint64_t(a.n)*size(uint64_t(a.dt))) return 0;
  if (!a.dup.buffer || bytes_of(a.dup) < uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.n)*size(uint64_t(a.dt))) return 2;
  if (!a.gate.buffer || bytes_of(a.gate) < uint64_t(a.n)*size(uint64_t(a.dt))) return 3;
  if (!a.up.buffer || bytes_of(a.up) < uint64_t(a.n)*size(uint64_t(a.dt))) return 4;
  return -1;
}
inline void resolve_swiglu_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_swiglu_bwd*>(record);
  *static_cast<args::SwigluBwd*>(out) = args::SwigluBwd{p[0], p[1], p[2], p[3], p[4], a.n, a.dt};
}
inline double flops_swiglu_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_swiglu_bwd*>(record);
  (void)a;
  return double(10*uint64_t(a.n));
}
inline int check_swiglu_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_swiglu_fwd*>(record);
  (void)a;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.n)*size(uint64_t(a.dt))) return 0;
  if (!a.gate.buffer || bytes_of(a.gate) < uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  if (!a.up.buffer || bytes_of(a.up) < uint64_t(a.n)*size(uint64_t(a.dt))) return 2;
  return -1;
}
inline void resolve_swiglu_fwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_swiglu_fwd*>(record);
  *static_cast<args::SwigluFwd*>(out) = args::SwigluFwd{p[0], p[1], p[2], a.n, a.dt};
}
inline double flops_swiglu_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_swiglu_fwd*>(record);
  (void)a;
  return double(5*uint64_t(a.n));
}
inline int check_embed_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_embed_bwd*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 1;
  if (a.vocab == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.wdt > RLV_BF16) return kBadDtype;
  if (!a.dtable.buffer || bytes_of(a.dtable) < packed_len(uint64_t(a.vocab),uint64_t(a.cols),uint64_t(a.wdt))*4) return 0;
  if (!a.ids.buffer || bytes_of(a.ids) < uint64_t(a.rows)*4) return 1;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 2;
  return -1;
}
inline void resolve_embed_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_embed_bwd*>(record);
  *static_cast<args::EmbedBwd*>(out) = args::EmbedBwd{p[0], p[1], p[2], a.rows, a.cols, a.vocab, a.dt, a.wdt};
}
inline double flops_embed_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_embed_bwd*>(record);
  (void)a;
  return double(uint64_t(a.rows)*uint64_t(a.cols));
}
inline int check_embed_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_embed_fwd*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 1;
  if (a.vocab == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.wdt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 0;
  if (!a.ids.buffer || bytes_of(a.ids) < uint64_t(a.rows)*4) return 1;
  if (!a.table.buffer || bytes_of(a.table) < packed_len(uint64_t(a.vocab),uint64_t(a.cols),uint64_t(a.wdt))*size(uint64_t(a.wdt))) return 2;
  return -1;
}
inline void resolve_embed_fwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_embed_fwd*>(record);
  *static_cast<args::EmbedFwd*>(out) = args::EmbedFwd{p[0], p[1], p[2], a.rows, a.cols, a.vocab, a.dt, a.wdt};
}
inline double flops_embed_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_embed_fwd*>(record);
  (void)a;
  return double(0);
}
inline int check_gather_rows(const void* record) {
  const auto& a = *static_cast<const rlv_op_gather_rows*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 0;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.src_rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 1;
  if (!a.index.buffer || bytes_of(a.index) < uint64_t(a.rows)*4) return 2;
  return -1;
}
inline void resolve_gather_rows(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_gather_rows*>(record);
  *static_cast<args::GatherRows*>(out) = args::GatherRows{p[0], p[1], p[2], a.rows, a.src_rows, a.cols, a.dt};
}
inline double flops_gather_rows(const void* record) {
  const auto& a = *static_cast<const rlv_op_gather_rows*>(record);
  (void)a;
  return double(0);
}
inline int check_gather_rows_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_gather_rows_bwd*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.dx.buffer || bytes_of(a.dx) < uint64_t(a.src_rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 0;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 1;
  if (!a.index.buffer || bytes_of(a.index) < uint64_t(a.rows)*4) return 2;
  return -1;
}
inline void resolve_gather_rows_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_gather_rows_bwd*>(record);
  *static_cast<args::GatherRowsBwd*>(out) = args::GatherRowsBwd{p[0], p[1], p[2], a.rows, a.src_rows, a.cols, a.dt};
}
inline double flops_gather_rows_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_gather_rows_bwd*>(record);
  (void)a;
  return double(uint64_t(a.rows)*uint64_t(a.cols));
}
inline int check_logprob_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_logprob_bwd*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 1;
  if (a.vocab == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.dx.buffer || bytes_of(a.dx) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 0;
  if (a.dw.buffer && bytes_of(a.dw) < packed_len(uint64_t(a.vocab),uint64_t(a.cols),uint64_t(a.dt))*4) return 1;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 2;
  if (!a.w.buffer || bytes_of(a.w) < packed_len(uint64_t(a.vocab),uint64_t(a.cols),uint64_t(a.dt))*size(uint64_t(a.dt))) return 3;
  if (!a.targets.buffer || bytes_of(a.targets) < uint64_t(a.rows)*4) return 4;
  if (!a.lse.buffer || bytes_of(a.lse) < uint64_t(a.rows)*4) return 5;
  if (a.dentropy.buffer && !a.entropy.buffer) return 6;
  if (a.entropy.buffer && bytes_of(a.entropy) < uint64_t(a.rows)*4) return 6;
  if (!a.dlogprob.buffer || bytes_of(a.dlogprob) < uint64_t(a.rows)*4) return 7;
  if (a.dentropy.buffer && bytes_of(a.dentropy) < uint64_t(a.rows)*4) return 8;
  if (!a.work.buffer || bytes_of(a.work) < uint64_t(a.rows)*uint64_t(a.cols)*4 + min_u64(uint64_t(a.rows),256)*min_u64(ceil_div(uint64_t(a.vocab),512)*512,4096)*4) return 9;
  if (a.logprob.buffer && bytes_of(a.logprob) < uint64_t(a.rows)*4) return 10;
  return -1;
}
inline void resolve_logprob_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_logprob_bwd*>(record);
  *static_cast<args::LogprobBwd*>(out) = args::LogprobBwd{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], a.rows, a.cols, a.vocab, a.inv_temp, a.dt};
}
inline double flops_logprob_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_logprob_bwd*>(record);
  (void)a;
  return double(6*uint64_t(a.rows)*uint64_t(a.cols)*uint64_t(a.vocab));
}
inline int check_logprob_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_logprob_fwd*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 1;
  if (a.vocab == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.logprob.buffer || bytes_of(a.logprob) < uint64_t(a.rows)*4) return 0;
  if (!a.lse.buffer || bytes_of(a.lse) < uint64_t(a.rows)*4) return 1;
  if (!a.entropy.buffer || bytes_of(a.entropy) < uint64_t(a.rows)*4) return 2;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 3;
  if (!a.w.buffer || bytes_of(a.w) < packed_len(uint64_t(a.vocab),uint64_t(a.cols),uint64_t(a.dt))*size(uint64_t(a.dt))) return 4;
  if (!a.targets.buffer || bytes_of(a.targets) < uint64_t(a.rows)*4) return 5;
  if (!a.partial.buffer || bytes_of(a.partial) < uint64_t(a.rows)*ceil_div(uint64_t(a.vocab),512)*16) return 6;
  if (a.again.buffer && bytes_of(a.again) < uint64_t(a.rows)*4) return 7;
  return -1;
}
inline void resolve_logprob_fwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_logprob_fwd*>(record);
  *static_cast<args::LogprobFwd*>(out) = args::LogprobFwd{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], a.rows, a.cols, a.vocab, a.inv_temp, a.dt};
}
inline double flops_logprob_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_logprob_fwd*>(record);
  (void)a;
  return double(2*uint64_t(a.rows)*uint64_t(a.cols)*uint64_t(a.vocab));
}
inline int check_sample(const void* record) {
  const auto& a = *static_cast<const rlv_op_sample*>(record);
  (void)a;
  if (a.vocab == 0) return kZero + 1;
  if (!a.ids.buffer || bytes_of(a.ids) < uint64_t(a.batch)*4) return 0;
  if (!a.logprob.buffer || bytes_of(a.logprob) < uint64_t(a.batch)*4) return 1;
  if (!a.logits.buffer || bytes_of(a.logits) < uint64_t(a.batch)*uint64_t(a.vocab)*4) return 2;
  if (!a.counters.buffer || bytes_of(a.counters) < uint64_t(a.batch)*16) return 3;
  if (!a.work.buffer || bytes_of(a.work) < uint64_t(a.batch)*ceil_div(uint64_t(a.vocab),512)*16) return 4;
  if (a.lse.buffer && bytes_of(a.lse) < uint64_t(a.batch)*4) return 5;
  if (a.entropy.buffer && bytes_of(a.entropy) < uint64_t(a.batch)*4) return 6;
  return -1;
}
inline void resolve_sample(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_sample*>(record);
  *static_cast<args::Sample*>(out) = args::Sample{p[0], p[1], p[2], p[3], p[4], p[5], p[6], a.batch, a.vocab, a.seed, a.purpose, a.inv_temp, a.top_k, a.top_p, a.min_p, a.greedy};
}
inline double flops_sample(const void* record) {
  const auto& a = *static_cast<const rlv_op_sample*>(record);
  (void)a;
  return double(6*uint64_t(a.batch)*uint64_t(a.vocab));
}
inline int check_adamw(const void* record) {
  const auto& a = *static_cast<const rlv_op_adamw*>(record);
  (void)a;
  if (a.wdt > RLV_BF16) return kBadDtype;
  if (a.gdt > RLV_BF16) return kBadDtype;
  if (a.mdt > RLV_F8) return kBadDtype;
  if (!a.p.buffer || bytes_of(a.p) < uint64_t(a.n)*size(uint64_t(a.wdt))) return 0;
  if (a.lo.buffer && bytes_of(a.lo) < uint64_t(a.n)*2) return 1;
  if (!a.g.buffer || bytes_of(a.g) < uint64_t(a.n)*size(uint64_t(a.gdt))) return 2;
  if (!a.m.buffer || bytes_of(a.m) < uint64_t(a.n)*size(uint64_t(a.mdt))) return 3;
  if (!a.v.buffer || bytes_of(a.v) < uint64_t(a.n)*size(uint64_t(a.mdt))) return 4;
  if (a.m_scale.buffer && bytes_of(a.m_scale) < ceil_div(uint64_t(a.n),256)*4) return 5;
  if (a.v_scale.buffer && bytes_of(a.v_scale) < ceil_div(uint64_t(a.n),256)*4) return 6;
  if (!a.result.buffer || bytes_of(a.result) < 16) return 7;
  return -1;
}
inline void resolve_adamw(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_adamw*>(record);
  *static_cast<args::Adamw*>(out) = args::Adamw{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], a.n, a.wdt, a.gdt, a.mdt, a.lr, a.beta1, a.beta2, a.eps, a.weight_decay, a.c1, a.c2, a.seed, a.tensor, a.step};
}
inline double flops_adamw(const void* record) {
  const auto& a = *static_cast<const rlv_op_adamw*>(record);
  (void)a;
  return double(12*uint64_t(a.n));
}
inline int check_clip_coef(const void* record) {
  const auto& a = *static_cast<const rlv_op_clip_coef*>(record);
  (void)a;
  if (!a.result.buffer || bytes_of(a.result) < 16) return 0;
  if (!a.sums.buffer || bytes_of(a.sums) < uint64_t(a.slots)*8) return 1;
  return -1;
}
inline void resolve_clip_coef(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_clip_coef*>(record);
  *static_cast<args::ClipCoef*>(out) = args::ClipCoef{p[0], p[1], a.slots, a.max_norm};
}
inline double flops_clip_coef(const void* record) {
  const auto& a = *static_cast<const rlv_op_clip_coef*>(record);
  (void)a;
  return double(uint64_t(a.slots));
}
inline int check_sq_norm(const void* record) {
  const auto& a = *static_cast<const rlv_op_sq_norm*>(record);
  (void)a;
  if (a.gdt > RLV_BF16) return kBadDtype;
  if (!a.sums.buffer || bytes_of(a.sums) < uint64_t(a.slots)*8) return 0;
  if (!a.g.buffer || bytes_of(a.g) < uint64_t(a.n)*size(uint64_t(a.gdt))) return 1;
  if (!a.partial.buffer || bytes_of(a.partial) < ceil_div(uint64_t(a.n),65536)*8) return 2;
  return -1;
}
inline void resolve_sq_norm(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_sq_norm*>(record);
  *static_cast<args::SqNorm*>(out) = args::SqNorm{p[0], p[1], p[2], a.n, a.gdt, a.slots, a.slot};
}
inline double flops_sq_norm(const void* record) {
  const auto& a = *static_cast<const rlv_op_sq_norm*>(record);
  (void)a;
  return double(2*uint64_t(a.n));
}
inline int check_add(const void* record) {
  const auto& a = *static_cast<const rlv_op_add*>(record);
  (void)a;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.n)*size(uint64_t(a.dt))) return 0;
  if (!a.a.buffer || bytes_of(a.a) < uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  if (!a.b.buffer || bytes_of(a.b) < uint64_t(a.n)*size(uint64_t(a.dt))) return 2;
  return -1;
}
inline void resolve_add(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_add*>(record);
  *static_cast<args::Add*>(out) = args::Add{p[0], p[1], p[2], a.n, a.dt};
}
inline double flops_add(const void* record) {
  const auto& a = *static_cast<const rlv_op_add*>(record);
  (void)a;
  return double(uint64_t(a.n));
}
inline int check_cast(const void* record) {
  const auto& a = *static_cast<const rlv_op_cast*>(record);
  (void)a;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.ydt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.n)*size(uint64_t(a.ydt))) return 0;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  return -1;
}
inline void resolve_cast(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_cast*>(record);
  *static_cast<args::Cast*>(out) = args::Cast{p[0], p[1], a.n, a.dt, a.ydt};
}
inline double flops_cast(const void* record) {
  const auto& a = *static_cast<const rlv_op_cast*>(record);
  (void)a;
  return double(0);
}
inline int check_copy(const void* record) {
  const auto& a = *static_cast<const rlv_op_copy*>(record);
  (void)a;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.n)) return 0;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.n)) return 1;
  return -1;
}
inline void resolve_copy(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_copy*>(record);
  *static_cast<args::Copy*>(out) = args::Copy{p[0], p[1], a.n};
}
inline double flops_copy(const void* record) {
  const auto& a = *static_cast<const rlv_op_copy*>(record);
  (void)a;
  return double(0);
}
inline int check_fill(const void* record) {
  const auto& a = *static_cast<const rlv_op_fill*>(record);
  (void)a;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.n)*4) return 0;
  return -1;
}
inline void resolve_fill(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_fill*>(record);
  *static_cast<args::Fill*>(out) = args::Fill{p[0], a.n, a.value};
}
inline double flops_fill(const void* record) {
  const auto& a = *static_cast<const rlv_op_fill*>(record);
  (void)a;
  return double(0);
}
inline int check_pack_weight(const void* record) {
  const auto& a = *static_cast<const rlv_op_pack_weight*>(record);
  (void)a;
  if (a.k == 0) return kZero + 1;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.sdt > RLV_BF16) return kBadDtype;
  if (!a.w.buffer || bytes_of(a.w) < packed_len(uint64_t(a.n),uint64_t(a.k),uint64_t(a.dt))*size(uint64_t(a.dt))) return 0;
  if (a.lo.buffer && bytes_of(a.lo) < packed_len(uint64_t(a.n),uint64_t(a.k),uint64_t(a.dt))*2) return 1;
  if (!a.src.buffer || bytes_of(a.src) < uint64_t(a.n)*uint64_t(a.k)*size(uint64_t(a.sdt))) return 2;
  return -1;
}
inline void resolve_pack_weight(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_pack_weight*>(record);
  *static_cast<args::PackWeight*>(out) = args::PackWeight{p[0], p[1], p[2], a.n, a.k, a.dt, a.sdt};
}
inline double flops_pack_weight(const void* record) {
  const auto& a = *static_cast<const rlv_op_pack_weight*>(record);
  (void)a;
  return double(0);
}
inline int check_unpack_weight(const void* record) {
  const auto& a = *static_cast<const rlv_op_unpack_weight*>(record);
  (void)a;
  if (a.k == 0) return kZero + 1;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.edt > RLV_BF16) return kBadDtype;
  if (a.ddt > RLV_BF16) return kBadDtype;
  if (!a.dst.buffer || bytes_of(a.dst) < uint64_t(a.n)*uint64_t(a.k)*size(uint64_t(a.ddt))) return 0;
  if (!a.w.buffer || bytes_of(a.w) < packed_len(uint64_t(a.n),uint64_t(a.k),uint64_t(a.dt))*size(uint64_t(a.edt))) return 1;
  if (a.lo.buffer && bytes_of(a.lo) < packed_len(uint64_t(a.n),uint64_t(a.k),uint64_t(a.dt))*2) return 2;
  return -1;
}
inline void resolve_unpack_weight(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_unpack_weight*>(record);
  *static_cast<args::UnpackWeight*>(out) = args::UnpackWeight{p[0], p[1], p[2], a.n, a.k, a.dt, a.edt, a.ddt};
}
inline double flops_unpack_weight(const void* record) {
  const auto& a = *static_cast<const rlv_op_unpack_weight*>(record);
  (void)a;
  return double(0);
}
inline int check_linear_residual(const void* record) {
  const auto& a = *static_cast<const rlv_op_linear_residual*>(record);
  (void)a;
  if (a.k == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 0;
  if (!a.residual.buffer || bytes_of(a.residual) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.m)*uint64_t(a.k)*size(uint64_t(a.dt))) return 2;
  if (!a.w.buffer || bytes_of(a.w) < packed_len(uint64_t(a.n),uint64_t(a.k),uint64_t(a.dt))*size(uint64_t(a.dt))) return 3;
  if (!a.work.buffer || bytes_of(a.work) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 4;
  return -1;
}
inline void resolve_linear_residual(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_linear_residual*>(record);
  *static_cast<args::LinearResidual*>(out) = args::LinearResidual{p[0], p[1], p[2], p[3], p[4], a.m, a.n, a.k, a.dt};
}
inline double flops_linear_residual(const void* record) {
  const auto& a = *static_cast<const rlv_op_linear_residual*>(record);
  (void)a;
  return double(2*uint64_t(a.m)*uint64_t(a.n)*uint64_t(a.k));
}
inline int check_norm_qkv(const void* record) {
  const auto& a = *static_cast<const rlv_op_norm_qkv*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 1;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.q.buffer || bytes_of(a.q) < uint64_t(a.m)*uint64_t(a.nq)*size(uint64_t(a.dt))) return 0;
  if (!a.k.buffer || bytes_of(a.k) < uint64_t(a.m)*uint64_t(a.nkv)*size(uint64_t(a.dt))) return 1;
  if (!a.v.buffer || bytes_of(a.v) < uint64_t(a.m)*uint64_t(a.nkv)*size(uint64_t(a.dt))) return 2;
  if (!a.h.buffer || bytes_of(a.h) < uint64_t(a.m)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 3;
  if (!a.weight.buffer || bytes_of(a.weight) < uint64_t(a.cols)*4) return 4;
  if (!a.wq.buffer || bytes_of(a.wq) < packed_len(uint64_t(a.nq),uint64_t(a.cols),uint64_t(a.dt))*size(uint64_t(a.dt))) return 5;
  if (!a.wk.buffer || bytes_of(a.wk) < packed_len(uint64_t(a.nkv),uint64_t(a.cols),uint64_t(a.dt))*size(uint64_t(a.dt))) return 6;
  if (!a.wv.buffer || bytes_of(a.wv) < packed_len(uint64_t(a.nkv),uint64_t(a.cols),uint64_t(a.dt))*size(uint64_t(a.dt))) return 7;
  if (a.bq.buffer && bytes_of(a.bq) < uint64_t(a.nq)*4) return 8;
  if (a.bk.buffer && bytes_of(a.bk) < uint64_t(a.nkv)*4) return 9;
  if (a.bv.buffer && bytes_of(a.bv) < uint64_t(a.nkv)*4) return 10;
  if (!a.work.buffer || bytes_of(a.work) < uint64_t(a.m)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 11;
  return -1;
}
inline void resolve_norm_qkv(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_norm_qkv*>(record);
  *static_cast<args::NormQkv*>(out) = args::NormQkv{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], a.m, a.cols, a.nq, a.nkv, a.eps, a.dt};
}
inline double flops_norm_qkv(const void* record) {
  const auto& a = *static_cast<const rlv_op_norm_qkv*>(record);
  (void)a;
  return double(2*uint64_t(a.m)*uint64_t(a.cols)*uint64_t(a.nq) + 4*uint64_t(a.m)*uint64_t(a.cols)*uint64_t(a.nkv));
}
inline int check_norm_swiglu(const void* record) {
  const auto& a = *static_cast<const rlv_op_norm_swiglu*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 1;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 0;
  if (!a.h.buffer || bytes_of(a.h) < uint64_t(a.m)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 1;
  if (!a.weight.buffer || bytes_of(a.weight) < uint64_t(a.cols)*4) return 2;
  if (!a.wgate.buffer || bytes_of(a.wgate) < packed_len(uint64_t(a.n),uint64_t(a.cols),uint64_t(a.dt))*size(uint64_t(a.dt))) return 3;
  if (!a.wup.buffer || bytes_of(a.wup) < packed_len(uint64_t(a.n),uint64_t(a.cols),uint64_t(a.dt))*size(uint64_t(a.dt))) return 4;
  if (!a.work.buffer || bytes_of(a.work) < uint64_t(a.m)*uint64_t(a.cols)*4 + uint64_t(a.m)*uint64_t(a.n)*8) return 5;
  return -1;
}
inline void resolve_norm_swiglu(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_norm_swiglu*>(record);
  *static_cast<args::NormSwiglu*>(out) = args::NormSwiglu{p[0], p[1], p[2], p[3], p[4], p[5], a.m, a.cols, a.n, a.eps, a.dt};
}
inline double flops_norm_swiglu(const void* record) {
  const auto& a = *static_cast<const rlv_op_norm_swiglu*>(record);
  (void)a;
  return double(4*uint64_t(a.m)*uint64_t(a.cols)*uint64_t(a.n));
}
inline int check_rope_append(const void* record) {
  const auto& a = *static_cast<const rlv_op_rope_append*>(record);
  (void)a;
  if (a.heads == 0) return kZero + 1;
  if (a.kv_heads == 0) return kZero + 2;
  if (a.head_dim == 0) return kZero + 3;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 0;
  if (!a.kv.buffer || bytes_of(a.kv) < uint64_t(a.kv_pages)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*32*size(uint64_t(a.dt))) return 1;
  if (!a.q.buffer || bytes_of(a.q) < uint64_t(a.rows)*uint64_t(a.heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 2;
  if (!a.k.buffer || bytes_of(a.k) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 3;
  if (!a.v.buffer || bytes_of(a.v) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 4;
  if (a.qweight.buffer && bytes_of(a.qweight) < uint64_t(a.head_dim)*4) return 5;
  if (a.kweight.buffer && bytes_of(a.kweight) < uint64_t(a.head_dim)*4) return 6;
  if (!a.positions.buffer || bytes_of(a.positions) < uint64_t(a.rows)*4) return 7;
  if (!a.rope.buffer || bytes_of(a.rope) < uint64_t(a.max_pos)*uint64_t(a.head_dim)*4) return 8;
  if (!a.slots.buffer || bytes_of(a.slots) < uint64_t(a.rows)*4) return 9;
  if (!a.work.buffer || bytes_of(a.work) < uint64_t(a.rows)*uint64_t(a.kv_heads)*uint64_t(a.head_dim)*size(uint64_t(a.dt))) return 10;
  return -1;
}
inline void resolve_rope_append(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_rope_append*>(record);
  *static_cast<args::RopeAppend*>(out) = args::RopeAppend{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], a.rows, a.heads, a.kv_heads, a.head_dim, a.max_pos, a.kv_pages, a.eps, a.dt};
}
inline double flops_rope_append(const void* record) {
  const auto& a = *static_cast<const rlv_op_rope_append*>(record);
  (void)a;
  return double(8*uint64_t(a.rows)*(uint64_t(a.heads) + uint64_t(a.kv_heads))*uint64_t(a.head_dim));
}
inline int check_lora_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_lora_bwd*>(record);
  (void)a;
  if (a.k == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.dx.buffer && bytes_of(a.dx) < uint64_t(a.m)*uint64_t(a.k)*size(uint64_t(a.dt))) return 0;
  if (a.da.buffer && bytes_of(a.da) < packed_len(uint64_t(a.r),uint64_t(a.k),uint64_t(a.dt))*4) return 1;
  if (a.db.buffer && bytes_of(a.db) < packed_len(uint64_t(a.n),uint64_t(a.r),uint64_t(a.dt))*4) return 2;
  if (!a.du.buffer || bytes_of(a.du) < uint64_t(a.m)*uint64_t(a.r)*size(uint64_t(a.dt))) return 3;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 4;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.m)*uint64_t(a.k)*size(uint64_t(a.dt))) return 5;
  if (!a.u.buffer || bytes_of(a.u) < uint64_t(a.m)*uint64_t(a.r)*size(uint64_t(a.dt))) return 6;
  if (!a.a.buffer || bytes_of(a.a) < packed_len(uint64_t(a.r),uint64_t(a.k),uint64_t(a.dt))*size(uint64_t(a.dt))) return 7;
  if (!a.b.buffer || bytes_of(a.b) < packed_len(uint64_t(a.n),uint64_t(a.r),uint64_t(a.dt))*size(uint64_t(a.dt))) return 8;
  if (a.routes.buffer && bytes_of(a.routes) < uint64_t(a.m)*4) return 9;
  if (a.routes.buffer && !a.masked.buffer) return 10;
  if (a.masked.buffer && bytes_of(a.masked) < 2*uint64_t(a.m)*uint64_t(a.r)*size(uint64_t(a.dt))) return 10;
  return -1;
}
inline void resolve_lora_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_lora_bwd*>(record);
  *static_cast<args::LoraBwd*>(out) = args::LoraBwd{p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], a.m, a.n, a.k, a.r, a.split, a.scale, a.scale2, a.dt, a.accumulate};
}
inline double flops_lora_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_lora_bwd*>(record);
  (void)a;
  return double(4*uint64_t(a.m)*uint64_t(a.r)*(uint64_t(a.n)+uint64_t(a.k)));
}
inline int check_lora_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_lora_fwd*>(record);
  (void)a;
  if (a.k == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 0;
  if (!a.u.buffer || bytes_of(a.u) < uint64_t(a.m)*uint64_t(a.r)*size(uint64_t(a.dt))) return 1;
  if (!a.base.buffer || bytes_of(a.base) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 2;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.m)*uint64_t(a.k)*size(uint64_t(a.dt))) return 3;
  if (!a.a.buffer || bytes_of(a.a) < packed_len(uint64_t(a.r),uint64_t(a.k),uint64_t(a.dt))*size(uint64_t(a.dt))) return 4;
  if (!a.b.buffer || bytes_of(a.b) < packed_len(uint64_t(a.n),uint64_t(a.r),uint64_t(a.dt))*size(uint64_t(a.dt))) return 5;
  if (a.routes.buffer && bytes_of(a.routes) < uint64_t(a.m)*4) return 6;
  return -1;
}
inline void resolve_lora_fwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_lora_fwd*>(record);
  *static_cast<args::LoraFwd*>(out) = args::LoraFwd{p[0], p[1], p[2], p[3], p[4], p[5], p[6], a.m, a.n, a.k, a.r, a.split, a.scale, a.scale2, a.dt};
}
inline double flops_lora_fwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_lora_fwd*>(record);
  (void)a;
  return double(2*uint64_t(a.m)*uint64_t(a.r)*(uint64_t(a.n)+uint64_t(a.k)));
}
inline int check_dropout(const void* record) {
  const auto& a = *static_cast<const rlv_op_dropout*>(record);
  (void)a;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.n)*size(uint64_t(a.dt))) return 0;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  return -1;
}
inline void resolve_dropout(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_dropout*>(record);
  *static_cast<args::Dropout*>(out) = args::Dropout{p[0], p[1], a.n, a.seed, a.purpose, a.site, a.step, a.part, a.threshold, a.scale, a.dt};
}
inline double flops_dropout(const void* record) {
  const auto& a = *static_cast<const rlv_op_dropout*>(record);
  (void)a;
  return double(uint64_t(a.n));
}
inline int check_dequantize_weight(const void* record) {
  const auto& a = *static_cast<const rlv_op_dequantize_weight*>(record);
  (void)a;
  if (a.k == 0) return kZero + 1;
  if (a.qt > RLV_NF4) return kBadDtype;
  if (!a.dst.buffer || bytes_of(a.dst) < uint64_t(a.n)*uint64_t(a.k)*4) return 0;
  if (!a.codes.buffer || bytes_of(a.codes) < quant_bytes(uint64_t(a.n),uint64_t(a.k),uint64_t(a.qt))) return 1;
  if (!a.scales.buffer || bytes_of(a.scales) < quant_scales(uint64_t(a.n),uint64_t(a.k),uint64_t(a.qt))*4) return 2;
  return -1;
}
inline void resolve_dequantize_weight(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_dequantize_weight*>(record);
  *static_cast<args::DequantizeWeight*>(out) = args::DequantizeWeight{p[0], p[1], p[2], a.n, a.k, a.qt};
}
inline double flops_dequantize_weight(const void* record) {
  const auto& a = *static_cast<const rlv_op_dequantize_weight*>(record);
  (void)a;
  return double(uint64_t(a.n)*uint64_t(a.k));
}
inline int check_quant_embed(const void* record) {
  const auto& a = *static_cast<const rlv_op_quant_embed*>(record);
  (void)a;
  if (a.cols == 0) return kZero + 1;
  if (a.vocab == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.qt > RLV_NF4) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.rows)*uint64_t(a.cols)*size(uint64_t(a.dt))) return 0;
  if (!a.ids.buffer || bytes_of(a.ids) < uint64_t(a.rows)*4) return 1;
  if (!a.codes.buffer || bytes_of(a.codes) < quant_bytes(uint64_t(a.vocab),uint64_t(a.cols),uint64_t(a.qt))) return 2;
  if (!a.scales.buffer || bytes_of(a.scales) < quant_scales(uint64_t(a.vocab),uint64_t(a.cols),uint64_t(a.qt))*4) return 3;
  return -1;
}
inline void resolve_quant_embed(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_quant_embed*>(record);
  *static_cast<args::QuantEmbed*>(out) = args::QuantEmbed{p[0], p[1], p[2], p[3], a.rows, a.cols, a.vocab, a.qt, a.dt};
}
inline double flops_quant_embed(const void* record) {
  const auto& a = *static_cast<const rlv_op_quant_embed*>(record);
  (void)a;
  return double(uint64_t(a.rows)*uint64_t(a.cols));
}
inline int check_quant_linear(const void* record) {
  const auto& a = *static_cast<const rlv_op_quant_linear*>(record);
  (void)a;
  if (a.k == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.ydt > RLV_BF16) return kBadDtype;
  if (a.qt > RLV_NF4) return kBadDtype;
  if (!a.y.buffer || bytes_of(a.y) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.ydt))) return 0;
  if (!a.x.buffer || bytes_of(a.x) < uint64_t(a.m)*uint64_t(a.k)*size(uint64_t(a.dt))) return 1;
  if (!a.codes.buffer || bytes_of(a.codes) < quant_bytes(uint64_t(a.n),uint64_t(a.k),uint64_t(a.qt))) return 2;
  if (!a.scales.buffer || bytes_of(a.scales) < quant_scales(uint64_t(a.n),uint64_t(a.k),uint64_t(a.qt))*4) return 3;
  if (a.bias.buffer && bytes_of(a.bias) < uint64_t(a.n)*4) return 4;
  return -1;
}
inline void resolve_quant_linear(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_quant_linear*>(record);
  *static_cast<args::QuantLinear*>(out) = args::QuantLinear{p[0], p[1], p[2], p[3], p[4], a.m, a.n, a.k, a.qt, a.dt, a.ydt};
}
inline double flops_quant_linear(const void* record) {
  const auto& a = *static_cast<const rlv_op_quant_linear*>(record);
  (void)a;
  return double(2*uint64_t(a.m)*uint64_t(a.n)*uint64_t(a.k));
}
inline int check_quant_linear_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_quant_linear_bwd*>(record);
  (void)a;
  if (a.k == 0) return kZero + 2;
  if (a.dt > RLV_BF16) return kBadDtype;
  if (a.qt > RLV_NF4) return kBadDtype;
  if (!a.dx.buffer || bytes_of(a.dx) < uint64_t(a.m)*uint64_t(a.k)*size(uint64_t(a.dt))) return 0;
  if (!a.dy.buffer || bytes_of(a.dy) < uint64_t(a.m)*uint64_t(a.n)*size(uint64_t(a.dt))) return 1;
  if (!a.codes.buffer || bytes_of(a.codes) < quant_bytes(uint64_t(a.n),uint64_t(a.k),uint64_t(a.qt))) return 2;
  if (!a.scales.buffer || bytes_of(a.scales) < quant_scales(uint64_t(a.n),uint64_t(a.k),uint64_t(a.qt))*4) return 3;
  return -1;
}
inline void resolve_quant_linear_bwd(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_quant_linear_bwd*>(record);
  *static_cast<args::QuantLinearBwd*>(out) = args::QuantLinearBwd{p[0], p[1], p[2], p[3], a.m, a.n, a.k, a.qt, a.dt, a.accumulate};
}
inline double flops_quant_linear_bwd(const void* record) {
  const auto& a = *static_cast<const rlv_op_quant_linear_bwd*>(record);
  (void)a;
  return double(2*uint64_t(a.m)*uint64_t(a.n)*uint64_t(a.k));
}
inline int check_quantize_weight(const void* record) {
  const auto& a = *static_cast<const rlv_op_quantize_weight*>(record);
  (void)a;
  if (a.k == 0) return kZero + 1;
  if (a.sdt > RLV_BF16) return kBadDtype;
  if (a.qt > RLV_NF4) return kBadDtype;
  if (!a.codes.buffer || bytes_of(a.codes) < quant_bytes(uint64_t(a.n),uint64_t(a.k),uint64_t(a.qt))) return 0;
  if (!a.scales.buffer || bytes_of(a.scales) < quant_scales(uint64_t(a.n),uint64_t(a.k),uint64_t(a.qt))*4) return 1;
  if (!a.src.buffer || bytes_of(a.src) < uint64_t(a.n)*uint64_t(a.k)*size(uint64_t(a.sdt))) return 2;
  return -1;
}
inline void resolve_quantize_weight(const void* record, void* const* p, void* out) {
  const auto& a = *static_cast<const rlv_op_quantize_weight*>(record);
  *static_cast<args::QuantizeWeight*>(out) = args::QuantizeWeight{p[0], p[1], p[2], a.n, a.k, a.qt, a.sdt};
}
inline double flops_quantize_weight(const void* record) {
  const auto& a = *static_cast<const rlv_op_quantize_weight*>(record);
  (void)a;
  return double(uint64_t(a.n)*uint64_t(a.k));
}

struct FieldInfo {
  const char* name;
  Access access;
  const char* beside;  // the tensor that is not there without this one
};

struct ParamInfo {
  const char* name;
  bool is_float;
};

struct OpInfo {
  const char* name;
  const char* family;
  uint32_t record_bytes;  // of the wire struct
  uint32_t args_bytes;    // of the resolved struct
  int tensors;
  FieldInfo field[kMaxTensors];
  int params;  // one word each, behind the tensors
  ParamInfo param[kMaxParams];
  // -1, the first tensor that is too short or missing, kBadDtype, or kZero and more.
  int (*check)(const void* record);
  void (*resolve)(const void* record, void* const* pointers, void* args);
  double (*flops)(const void* record);
};

inline const OpInfo& op_info(uint32_t id) {
  static const OpInfo table[RLV_OP_COUNT] = {
    {"", "", 0, 0, 0, {}, 0, {}, nullptr, nullptr, nullptr},
    {"bias_bwd", "gemm", sizeof(rlv_op_bias_bwd), sizeof(args::BiasBwd), 3, {{"dbias", kReadWrite, nullptr}, {"dy", kRead, nullptr}, {"partial", kScratch, nullptr}}, 3, {{"m", false}, {"n", false}, {"dt", false}}, check_bias_bwd, resolve_bias_bwd, flops_bias_bwd},
    {"gemm_nn", "gemm", sizeof(rlv_op_gemm_nn), sizeof(args::GemmNn), 3, {{"dx", kReadWrite, nullptr}, {"dy", kRead, nullptr}, {"w", kRead, nullptr}}, 5, {{"m", false}, {"n", false}, {"k", false}, {"dt", false}, {"accumulate", false}}, check_gemm_nn, resolve_gemm_nn, flops_gemm_nn},
    {"gemm_nt", "gemm", sizeof(rlv_op_gemm_nt), sizeof(args::GemmNt), 4, {{"y", kWrite, nullptr}, {"x", kRead, nullptr}, {"w", kRead, nullptr}, {"bias", kRead, nullptr}}, 6, {{"m", false}, {"n", false}, {"k", false}, {"dt", false}, {"ydt", false}, {"accumulate", false}}, check_gemm_nt, resolve_gemm_nt, flops_gemm_nt},
    {"gemm_tn", "gemm", sizeof(rlv_op_gemm_tn), sizeof(args::GemmTn), 3, {{"dw", kReadWrite, nullptr}, {"dy", kRead, nullptr}, {"x", kRead, nullptr}}, 5, {{"m", false}, {"n", false}, {"k", false}, {"dt", false}, {"gdt", false}}, check_gemm_tn, resolve_gemm_tn, flops_gemm_tn},
    {"qk_norm_rope_bwd", "norm", sizeof(rlv_op_qk_norm_rope_bwd), sizeof(args::QkNormRopeBwd), 8, {{"dx", kWrite, nullptr}, {"dweight", kReadWrite, nullptr}, {"dy", kRead, nullptr}, {"x", kRead, nullptr}, {"weight", kRead, nullptr}, {"positions", kRead, nullptr}, {"rope", kRead, nullptr}, {"partial", kScratch, nullptr}}, 6, {{"rows", false}, {"heads", false}, {"head_dim", false}, {"max_pos", false}, {"eps", true}, {"dt", false}}, check_qk_norm_rope_bwd, resolve_qk_norm_rope_bwd, flops_qk_norm_rope_bwd},
    {"qk_norm_rope_fwd", "norm", sizeof(rlv_op_qk_norm_rope_fwd), sizeof(args::QkNormRopeFwd), 5, {{"y", kWrite, nullptr}, {"x", kRead, nullptr}, {"weight", kRead, nullptr}, {"positions", kRead, nullptr}, {"rope", kRead, nullptr}}, 6, {{"rows", false}, {"heads", false}, {"head_dim", false}, {"max_pos", false}, {"eps", true}, {"dt", false}}, check_qk_norm_rope_fwd, resolve_qk_norm_rope_fwd, flops_qk_norm_rope_fwd},
    {"rms_norm_bwd", "norm", sizeof(rlv_op_rms_norm_bwd), sizeof(args::RmsNormBwd), 7, {{"dx", kWrite, nullptr}, {"dweight", kReadWrite, nullptr}, {"dy", kRead, nullptr}, {"h", kRead, nullptr}, {"weight", kRead, nullptr}, {"dres", kRead, nullptr}, {"partial", kScratch, nullptr}}, 4, {{"rows", false}, {"cols", false}, {"eps", true}, {"dt", false}}, check_rms_norm_bwd, resolve_rms_norm_bwd, flops_rms_norm_bwd},
    {"rms_norm_fwd", "norm", sizeof(rlv_op_rms_norm_fwd), sizeof(args::RmsNormFwd), 5, {{"y", kWrite, nullptr}, {"h", kWrite, nullptr}, {"x", kRead, nullptr}, {"delta", kRead, nullptr}, {"weight", kRead, nullptr}}, 4, {{"rows", false}, {"cols", false}, {"eps", true}, {"dt", false}}, check_rms_norm_fwd, resolve_rms_norm_fwd, flops_rms_norm_fwd},
    {"attn_bwd", "attention", sizeof(rlv_op_attn_bwd), sizeof(args::AttnBwd), 10, {{"dq", kWrite, nullptr}, {"dk", kWrite, nullptr}, {"dv", kWrite, nullptr}, {"dout", kRead, nullptr}, {"o", kRead, nullptr}, {"lse", kRead, nullptr}, {"q", kRead, nullptr}, {"k", kRead, nullptr}, {"v", kRead, nullptr}, {"segs", kRead, nullptr}}, 8, {{"rows", false}, {"heads", false}, {"kv_heads", false}, {"head_dim", false}, {"n_segs", false}, {"pairs", false}, {"scale", true}, {"dt", false}}, check_attn_bwd, resolve_attn_bwd, flops_attn_bwd},
    {"attn_decode", "attention", sizeof(rlv_op_attn_decode), sizeof(args::AttnDecode), 5, {{"o", kWrite, nullptr}, {"q", kRead, nullptr}, {"kv", kRead, nullptr}, {"table", kRead, nullptr}, {"lens", kRead, nullptr}}, 9, {{"batch", false}, {"heads", false}, {"kv_heads", false}, {"head_dim", false}, {"max_pages", false}, {"kv_pages", false}, {"pairs", false}, {"scale", true}, {"dt", false}}, check_attn_decode, resolve_attn_decode, flops_attn_decode},
    {"attn_fwd", "attention", sizeof(rlv_op_attn_fwd), sizeof(args::AttnFwd), 8, {{"o", kWrite, nullptr}, {"lse", kWrite, nullptr}, {"q", kRead, nullptr}, {"k", kRead, nullptr}, {"v", kRead, nullptr}, {"segs", kRead, nullptr}, {"kv", kRead, nullptr}, {"pages", kRead, nullptr}}, 10, {{"rows", false}, {"heads", false}, {"kv_heads", false}, {"head_dim", false}, {"n_segs", false}, {"n_pages", false}, {"kv_pages", false}, {"pairs", false}, {"scale", true}, {"dt", false}}, check_attn_fwd, resolve_attn_fwd, flops_attn_fwd},
    {"kv_append", "attention", sizeof(rlv_op_kv_append), sizeof(args::KvAppend), 4, {{"kv", kReadWrite, nullptr}, {"k", kRead, nullptr}, {"v", kRead, nullptr}, {"slots", kRead, nullptr}}, 5, {{"rows", false}, {"kv_heads", false}, {"head_dim", false}, {"kv_pages", false}, {"dt", false}}, check_kv_append, resolve_kv_append, flops_kv_append},
    {"kv_copy", "attention", sizeof(rlv_op_kv_copy), sizeof(args::KvCopy), 2, {{"kv", kReadWrite, nullptr}, {"pairs", kRead, nullptr}}, 5, {{"count", false}, {"kv_heads", false}, {"head_dim", false}, {"kv_pages", false}, {"dt", false}}, check_kv_copy, resolve_kv_copy, flops_kv_copy},
    {"swiglu_bwd", "mlp", sizeof(rlv_op_swiglu_bwd), sizeof(args::SwigluBwd), 5, {{"dgate", kWrite, nullptr}, {"dup", kWrite, nullptr}, {"dy", kRead, nullptr}, {"gate", kRead, nullptr}, {"up", kRead, nullptr}}, 2, {{"n", false}, {"dt", false}}, check_swiglu_bwd, resolve_swiglu_bwd, flops_swiglu_bwd},
    {"swiglu_fwd", "mlp", sizeof(rlv_op_swiglu_fwd), sizeof(args::SwigluFwd), 3, {{"y", kWrite, nullptr}, {"gate", kRead, nullptr}, {"up", kRead, nullptr}}, 2, {{"n", false}, {"dt", false}}, check_swiglu_fwd, resolve_swiglu_fwd, flops_swiglu_fwd},
    {"embed_bwd", "embedding", sizeof(rlv_op_embed_bwd), sizeof(args::EmbedBwd), 3, {{"dtable", kReadWrite, nullptr}, {"ids", kRead, nullptr}, {"dy", kRead, nullptr}}, 5, {{"rows", false}, {"cols", false}, {"vocab", false}, {"dt", false}, {"wdt", false}}, check_embed_bwd, resolve_embed_bwd, flops_embed_bwd},
    {"embed_fwd", "embedding", sizeof(rlv_op_embed_fwd), sizeof(args::EmbedFwd), 3, {{"y", kWrite, nullptr}, {"ids", kRead, nullptr}, {"table", kRead, nullptr}}, 5, {{"rows", false}, {"cols", false}, {"vocab", false}, {"dt", false}, {"wdt", false}}, check_embed_fwd, resolve_embed_fwd, flops_embed_fwd},
    {"gather_rows", "embedding", sizeof(rlv_op_gather_rows), sizeof(args::GatherRows), 3, {{"y", kWrite, nullptr}, {"x", kRead, nullptr}, {"index", kRead, nullptr}}, 4, {{"rows", false}, {"src_rows", false}, {"cols", false}, {"dt", false}}, check_gather_rows, resolve_gather_rows, flops_gather_rows},
    {"gather_rows_bwd", "embedding", sizeof(rlv_op_gather_rows_bwd), sizeof(args::GatherRowsBwd), 3, {{"dx", kWrite, nullptr}, {"dy", kRead, nullptr}, {"index", kRead, nullptr}}, 4, {{"rows", false}, {"src_rows", false}, {"cols", false}, {"dt", false}}, check_gather_rows_bwd, resolve_gather_rows_bwd, flops_gather_rows_bwd},
    {"logprob_bwd", "head", sizeof(rlv_op_logprob_bwd), sizeof(args::LogprobBwd), 11, {{"dx", kWrite, nullptr}, {"dw", kReadWrite, nullptr}, {"x", kRead, nullptr}, {"w", kRead, nullptr}, {"targets", kRead, nullptr}, {"lse", kRead, nullptr}, {"entropy", kRead, "dentropy"}, {"dlogprob", kRead, nullptr}, {"dentropy", kRead, nullptr}, {"work", kScratch, nullptr}, {"logprob", kWrite, nullptr}}, 5, {{"rows", false}, {"cols", false}, {"vocab", false}, {"inv_temp", true}, {"dt", false}}, check_logprob_bwd, resolve_logprob_bwd, flops_logprob_bwd},
    {"logprob_fwd", "head", sizeof(rlv_op_logprob_fwd), sizeof(args::LogprobFwd), 8, {{"logprob", kWrite, nullptr}, {"lse", kWrite, nullptr}, {"entropy", kWrite, nullptr}, {"x", kRead, nullptr}, {"w", kRead, nullptr}, {"targets", kRead, nullptr}, {"partial", kScratch, nullptr}, {"again", kWrite, nullptr}}, 5, {{"rows", false}, {"cols", false}, {"vocab", false}, {"inv_temp", true}, {"dt", false}}, check_logprob_fwd, resolve_logprob_fwd, flops_logprob_fwd},
    {"sample", "head", sizeof(rlv_op_sample), sizeof(args::Sample), 7, {{"ids", kWrite, nullptr}, {"logprob", kWrite, nullptr}, {"logits", kRead, nullptr}, {"counters", kRead, nullptr}, {"work", kScratch, nullptr}, {"lse", kWrite, nullptr}, {"entropy", kWrite, nullptr}}, 9, {{"batch", false}, {"vocab", false}, {"seed", false}, {"purpose", false}, {"inv_temp", true}, {"top_k", false}, {"top_p", true}, {"min_p", true}, {"greedy", false}}, check_sample, resolve_sample, flops_sample},
    {"adamw", "optimizer", sizeof(rlv_op_adamw), sizeof(args::Adamw), 8, {{"p", kReadWrite, nullptr}, {"lo", kReadWrite, nullptr}, {"g", kRead, nullptr}, {"m", kReadWrite, nullptr}, {"v", kReadWrite, nullptr}, {"m_scale", kReadWrite, nullptr}, {"v_scale", kReadWrite, nullptr}, {"result", kRead, nullptr}}, 14, {{"n", false}, {"wdt", false}, {"gdt", false}, {"mdt", false}, {"lr", true}, {"beta1", true}, {"beta2", true}, {"eps", true}, {"weight_decay", true}, {"c1", true}, {"c2", true}, {"seed", false}, {"tensor", false}, {"step", false}}, check_adamw, resolve_adamw, flops_adamw},
    {"clip_coef", "optimizer", sizeof(rlv_op_clip_coef), sizeof(args::ClipCoef), 2, {{"result", kWrite, nullptr}, {"sums", kRead, nullptr}}, 2, {{"slots", false}, {"max_norm", true}}, check_clip_coef, resolve_clip_coef, flops_clip_coef},
    {"sq_norm", "optimizer", sizeof(rlv_op_sq_norm), sizeof(args::SqNorm), 3, {{"sums", kReadWrite, nullptr}, {"g", kRead, nullptr}, {"partial", kScratch, nullptr}}, 4, {{"n", false}, {"gdt", false}, {"slots", false}, {"slot", false}}, check_sq_norm, resolve_sq_norm, flops_sq_norm},
    {"add", "elementwise", sizeof(rlv_op_add), sizeof(args::Add), 3, {{"y", kWrite, nullptr}, {"a", kRead, nullptr}, {"b", kRead, nullptr}}, 2, {{"n", false}, {"dt", false}}, check_add, resolve_add, flops_add},
    {"cast", "elementwise", sizeof(rlv_op_cast), sizeof(args::Cast), 2, {{"y", kWrite, nullptr}, {"x", kRead, nullptr}}, 3, {{"n", false}, {"dt", false}, {"ydt", false}}, check_cast, resolve_cast, flops_cast},
    {"copy", "elementwise", sizeof(rlv_op_copy), sizeof(args::Copy), 2, {{"y", kWrite, nullptr}, {"x", kRead, nullptr}}, 1, {{"n", false}}, check_copy, resolve_copy, flops_copy},
    {"fill", "elementwise", sizeof(rlv_op_fill), sizeof(args::Fill), 1, {{"y", kWrite, nullptr}}, 2, {{"n", false}, {"value", true}}, check_fill, resolve_fill, flops_fill},
    {"pack_weight", "elementwise", sizeof(rlv_op_pack_weight), sizeof(args::PackWeight), 3, {{"w", kWrite, nullptr}, {"lo", kWrite, nullptr}, {"src", kRead, nullptr}}, 4, {{"n", false}, {"k", false}, {"dt", false}, {"sdt", false}}, check_pack_weight, resolve_pack_weight, flops_pack_weight},
    {"unpack_weight", "elementwise", sizeof(rlv_op_unpack_weight), sizeof(args::UnpackWeight), 3, {{"dst", kWrite, nullptr}, {"w", kRead, nullptr}, {"lo", kRead, nullptr}}, 5, {{"n", false}, {"k", false}, {"dt", false}, {"edt", false}, {"ddt", false}}, check_unpack_weight, resolve_unpack_weight, flops_unpack_weight},
    {"linear_residual", "decode", sizeof(rlv_op_linear_residual), sizeof(args::LinearResidual), 5, {{"y", kWrite, nullptr}, {"residual", kRead, nullptr}, {"x", kRead, nullptr}, {"w", kRead, nullptr}, {"work", kScratch, nullptr}}, 4, {{"m", false}, {"n", false}, {"k", false}, {"dt", false}}, check_linear_residual, resolve_linear_residual, flops_linear_residual},
    {"norm_qkv", "decode", sizeof(rlv_op_norm_qkv), sizeof(args::NormQkv), 12, {{"q", kWrite, nullptr}, {"k", kWrite, nullptr}, {"v", kWrite, nullptr}, {"h", kRead, nullptr}, {"weight", kRead, nullptr}, {"wq", kRead, nullptr}, {"wk", kRead, nullptr}, {"wv", kRead, nullptr}, {"bq", kRead, nullptr}, {"bk", kRead, nullptr}, {"bv", kRead, nullptr}, {"work", kScratch, nullptr}}, 6, {{"m", false}, {"cols", false}, {"nq", false}, {"nkv", false}, {"eps", true}, {"dt", false}}, check_norm_qkv, resolve_norm_qkv, flops_norm_qkv},
    {"norm_swiglu", "decode", sizeof(rlv_op_norm_swiglu), sizeof(args::NormSwiglu), 6, {{"y", kWrite, nullptr}, {"h", kRead, nullptr}, {"weight", kRead, nullptr}, {"wgate", kRead, nullptr}, {"wup", kRead, nullptr}, {"work", kScratch, nullptr}}, 5, {{"m", false}, {"cols", false}, {"n", false}, {"eps", true}, {"dt", false}}, check_norm_swiglu, resolve_norm_swiglu, flops_norm_swiglu},
    {"rope_append", "decode", sizeof(rlv_op_rope_append), sizeof(args::RopeAppend), 11, {{"y", kWrite, nullptr}, {"kv", kReadWrite, nullptr}, {"q", kRead, nullptr}, {"k", kRead, nullptr}, {"v", kRead, nullptr}, {"qweight", kRead, nullptr}, {"kweight", kRead, nullptr}, {"positions", kRead, nullptr}, {"rope", kRead, nullptr}, {"slots", kRead, nullptr}, {"work", kScratch, nullptr}}, 8, {{"rows", false}, {"heads", false}, {"kv_heads", false}, {"head_dim", false}, {"max_pos", false}, {"kv_pages", false}, {"eps", true}, {"dt", false}}, check_rope_append, resolve_rope_append, flops_rope_append},
    {"lora_bwd", "lora", sizeof(rlv_op_lora_bwd), sizeof(args::LoraBwd), 11, {{"dx", kReadWrite, nullptr}, {"da", kReadWrite, nullptr}, {"db", kReadWrite, nullptr}, {"du", kScratch, nullptr}, {"dy", kRead, nullptr}, {"x", kRead, nullptr}, {"u", kRead, nullptr}, {"a", kRead, nullptr}, {"b", kRead, nullptr}, {"routes", kRead, nullptr}, {"masked", kScratch, "routes"}}, 9, {{"m", false}, {"n", false}, {"k", false}, {"r", false}, {"split", false}, {"scale", true}, {"scale2", true}, {"dt", false}, {"accumulate", false}}, check_lora_bwd, resolve_lora_bwd, flops_lora_bwd},
    {"lora_fwd", "lora", sizeof(rlv_op_lora_fwd), sizeof(args::LoraFwd), 7, {{"y", kWrite, nullptr}, {"u", kWrite, nullptr}, {"base", kRead, nullptr}, {"x", kRead, nullptr}, {"a", kRead, nullptr}, {"b", kRead, nullptr}, {"routes", kRead, nullptr}}, 8, {{"m", false}, {"n", false}, {"k", false}, {"r", false}, {"split", false}, {"scale", true}, {"scale2", true}, {"dt", false}}, check_lora_fwd, resolve_lora_fwd, flops_lora_fwd},
    {"dropout", "dropout", sizeof(rlv_op_dropout), sizeof(args::Dropout), 2, {{"y", kWrite, nullptr}, {"x", kRead, nullptr}}, 9, {{"n", false}, {"seed", false}, {"purpose", false}, {"site", false}, {"step", false}, {"part", false}, {"threshold", false}, {"scale", true}, {"dt", false}}, check_dropout, resolve_dropout, flops_dropout},
    {"dequantize_weight", "quant", sizeof(rlv_op_dequantize_weight), sizeof(args::DequantizeWeight), 3, {{"dst", kWrite, nullptr}, {"codes", kRead, nullptr}, {"scales", kRead, nullptr}}, 3, {{"n", false}, {"k", false}, {"qt", false}}, check_dequantize_weight, resolve_dequantize_weight, flops_dequantize_weight},
    {"quant_embed", "quant", sizeof(rlv_op_quant_embed), sizeof(args::QuantEmbed), 4, {{"y", kWrite, nullptr}, {"ids", kRead, nullptr}, {"codes", kRead, nullptr}, {"scales", kRead, nullptr}}, 5, {{"rows", false}, {"cols", false}, {"vocab", false}, {"qt", false}, {"dt", false}}, check_quant_embed, resolve_quant_embed, flops_quant_embed},
    {"quant_linear", "quant", sizeof(rlv_op_quant_linear), sizeof(args::QuantLinear), 5, {{"y", kWrite, nullptr}, {"x", kRead, nullptr}, {"codes", kRead, nullptr}, {"scales", kRead, nullptr}, {"bias", kRead, nullptr}}, 6, {{"m", false}, {"n", false}, {"k", false}, {"qt", false}, {"dt", false}, {"ydt", false}}, check_quant_linear, resolve_quant_linear, flops_quant_linear},
    {"quant_linear_bwd", "quant", sizeof(rlv_op_quant_linear_bwd), sizeof(args::QuantLinearBwd), 4, {{"dx", kReadWrite, nullptr}, {"dy", kRead, nullptr}, {"codes", kRead, nullptr}, {"scales", kRead, nullptr}}, 6, {{"m", false}, {"n", false}, {"k", false}, {"qt", false}, {"dt", false}, {"accumulate", false}}, check_quant_linear_bwd, resolve_quant_linear_bwd, flops_quant_linear_bwd},
    {"quantize_weight", "quant", sizeof(rlv_op_quantize_weight), sizeof(args::QuantizeWeight), 3, {{"codes", kWrite, nullptr}, {"scales", kWrite, nullptr}, {"src", kRead, nullptr}}, 4, {{"n", false}, {"k", false}, {"qt", false}, {"sdt", false}}, check_quantize_weight, resolve_quantize_weight, flops_quantize_weight},
  };
  return table[id];
}
}  // namespace rlv
