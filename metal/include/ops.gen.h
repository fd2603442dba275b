// Written by scripts/gen.ts from src/ops. Do not edit.
#pragma once
#ifndef __METAL_VERSION__
#include <stdint.h>
#ifdef __cplusplus
#define RLV_ASSERT_SIZE(type, bytes) static_assert(sizeof(type) == (bytes), #type)
#else
#define RLV_ASSERT_SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), #type)
#endif
#else
#define RLV_ASSERT_SIZE(type, bytes) static_assert(sizeof(type) == (bytes), #type)
#endif

#define RLV_F32 0u
#define RLV_BF16 1u
#define RLV_F8 2u  // moments of AdamW alone
#define RLV_INT8 0u
#define RLV_NF4 1u
#define RLV_NONE 0xffffffffu
#define RLV_PANEL 32u
#define RLV_QUANT_BLOCK 64u
#define RLV_PAGE 16u
#define RLV_VOCAB_TILE 512u
#define RLV_ROW_BLOCK 64u
#define RLV_NORM_BLOCK 65536u
#define RLV_MOMENT_BLOCK 256u
#define RLV_SEGMENT_WORDS 8u
#define RLV_HEAD_ROW_CHUNK 256u
#define RLV_HEAD_VOCAB_CHUNK 4096u
#define RLV_NF4_CODES -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f
#define RLV_NF4_LIMITS -0.8480963706970215f, -0.6106328964233398f, -0.4599952697753906f, -0.33967941999435425f, -0.23460739850997925f, -0.13791173696517944f, -0.045525018125772476f, 0.03979014977812767f, 0.120255246758461f, 0.2035212516784668f, 0.2920137643814087f, 0.3893125355243683f, 0.5016634464263916f, 0.6427869200706482f, 0.8614784479141235f
#define RLV_NF4_SMALLEST 7.52316384526264e-37f

// A byte range of a buffer; offset and length in units of 16 bytes. buffer 0: absent.
typedef struct {
  uint32_t buffer, offset, length;
} rlv_ref;

enum {
  RLV_OP_BIAS_BWD = 1,
  RLV_OP_GEMM_NN = 2,
  RLV_OP_GEMM_NT = 3,
  RLV_OP_GEMM_TN = 4,
  RLV_OP_QK_NORM_ROPE_BWD = 5,
  RLV_OP_QK_NORM_ROPE_FWD = 6,
  RLV_OP_RMS_NORM_BWD = 7,
  RLV_OP_RMS_NORM_FWD = 8,
  RLV_OP_ATTN_BWD = 9,
  RLV_OP_ATTN_DECODE = 10,
  RLV_OP_ATTN_FWD = 11,
  RLV_OP_KV_APPEND = 12,
  RLV_OP_KV_COPY = 13,
  RLV_OP_SWIGLU_BWD = 14,
  RLV_OP_SWIGLU_FWD = 15,
  RLV_OP_EMBED_BWD = 16,
  RLV_OP_EMBED_FWD = 17,
  RLV_OP_GATHER_ROWS = 18,
  RLV_OP_GATHER_ROWS_BWD = 19,
  RLV_OP_LOGPROB_BWD = 20,
  RLV_OP_LOGPROB_FWD = 21,
  RLV_OP_SAMPLE = 22,
  RLV_OP_ADAMW = 23,
  RLV_OP_CLIP_COEF = 24,
  RLV_OP_SQ_NORM = 25,
  RLV_OP_ADD = 26,
  RLV_OP_CAST = 27,
  RLV_OP_COPY = 28,
  RLV_OP_FILL = 29,
  RLV_OP_PACK_WEIGHT = 30,
  RLV_OP_UNPACK_WEIGHT = 31,
  RLV_OP_LINEAR_RESIDUAL = 32,
  RLV_OP_NORM_QKV = 33,
  RLV_OP_NORM_SWIGLU = 34,
  RLV_OP_ROPE_APPEND = 35,
  RLV_OP_LORA_BWD = 36,
  RLV_OP_LORA_FWD = 37,
  RLV_OP_DROPOUT = 38,
  RLV_OP_DEQUANTIZE_WEIGHT = 39,
  RLV_OP_QUANT_EMBED = 40,
  RLV_OP_QUANT_LINEAR = 41,
  RLV_OP_QUANT_LINEAR_BWD = 42,
  RLV_OP_QUANTIZE_WEIGHT = 43,
  RLV_OP_COUNT = 44
};

// dbias[n] += sum over rows of dy[m,n], in fixed blocks of 64 rows
typedef struct {
  rlv_ref dbias;
  rlv_ref dy;
  rlv_ref partial;
  uint32_t m;
  uint32_t n;
  uint32_t dt;
} rlv_op_bias_bwd;
RLV_ASSERT_SIZE(rlv_op_bias_bwd, 48);

// dx[m,k] (+)= dy[m,n] * w[n,k]; w packed; one accumulation chain over n per output
typedef struct {
  rlv_ref dx;
  rlv_ref dy;
  rlv_ref w;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t accumulate;
} rlv_op_gemm_nn;
RLV_ASSERT_SIZE(rlv_op_gemm_nn, 56);

// y[m,n] (+)= x[m,k] * w[n,k]^T + bias[n]; w packed in dtype dt, y in dtype ydt; float32 accumulation, one chain over k per output
typedef struct {
  rlv_ref y;
  rlv_ref x;
  rlv_ref w;
  rlv_ref bias;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t ydt;
  uint32_t accumulate;
} rlv_op_gemm_nt;
RLV_ASSERT_SIZE(rlv_op_gemm_nt, 72);

// dw[n,k] += dy^T[n,m] * x[m,k]; dw of dtype gdt (float32, or bfloat16 with dt bfloat16) in the packed layout of dtype dt; one chain over m per output, rounded once
typedef struct {
  rlv_ref dw;
  rlv_ref dy;
  rlv_ref x;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t gdt;
} rlv_op_gemm_tn;
RLV_ASSERT_SIZE(rlv_op_gemm_tn, 56);

// rotate dy by -angle, then per head the RMSNorm gradient (weight present) or the identity; dweight in fixed blocks of 64 rows
typedef struct {
  rlv_ref dx;
  rlv_ref dweight;
  rlv_ref dy;
  rlv_ref x;
  rlv_ref weight;
  rlv_ref positions;
  rlv_ref rope;
  rlv_ref partial;
  uint32_t rows;
  uint32_t heads;
  uint32_t head_dim;
  uint32_t max_pos;
  float eps;
  uint32_t dt;
} rlv_op_qk_norm_rope_bwd;
RLV_ASSERT_SIZE(rlv_op_qk_norm_rope_bwd, 120);

// per head: RMSNorm with weight (identity without), then rotate-half RoPE; rope[pos] = [cos(D/2), sin(D/2)]
typedef struct {
  rlv_ref y;
  rlv_ref x;
  rlv_ref weight;
  rlv_ref positions;
  rlv_ref rope;
  uint32_t rows;
  uint32_t heads;
  uint32_t head_dim;
  uint32_t max_pos;
  float eps;
  uint32_t dt;
} rlv_op_qk_norm_rope_fwd;
RLV_ASSERT_SIZE(rlv_op_qk_norm_rope_fwd, 84);

// dx = dres + r*(dy*w - n*mean(dy*w*n)), dweight += sum_t dy*n with n = h*r; dweight in fixed blocks of 64 rows
typedef struct {
  rlv_ref dx;
  rlv_ref dweight;
  rlv_ref dy;
  rlv_ref h;
  rlv_ref weight;
  rlv_ref dres;
  rlv_ref partial;
  uint32_t rows;
  uint32_t cols;
  float eps;
  uint32_t dt;
} rlv_op_rms_norm_bwd;
RLV_ASSERT_SIZE(rlv_op_rms_norm_bwd, 100);

// h = x + delta (rounded to dt); y = h / sqrt(mean(h^2) + eps) * weight. Without delta, h is x itself and h is not written
typedef struct {
  rlv_ref y;
  rlv_ref h;
  rlv_ref x;
  rlv_ref delta;
  rlv_ref weight;
  uint32_t rows;
  uint32_t cols;
  float eps;
  uint32_t dt;
} rlv_op_rms_norm_fwd;
RLV_ASSERT_SIZE(rlv_op_rms_norm_fwd, 76);

// dq, dk, dv of attn_fwd (no cached prefix); a prefix's dk, dv is the sum over the segments that continue it, in segment order
typedef struct {
  rlv_ref dq;
  rlv_ref dk;
  rlv_ref dv;
  rlv_ref dout;
  rlv_ref o;
  rlv_ref lse;
  rlv_ref q;
  rlv_ref k;
  rlv_ref v;
  rlv_ref segs;
  uint32_t rows;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t n_segs;
  uint32_t pairs;
  float scale;
  uint32_t dt;
} rlv_op_attn_bwd;
RLV_ASSERT_SIZE(rlv_op_attn_bwd, 152);

// one query token per sequence attends to lens[b] cached positions through its page table; bit-equal to attn_fwd
typedef struct {
  rlv_ref o;
  rlv_ref q;
  rlv_ref kv;
  rlv_ref table;
  rlv_ref lens;
  uint32_t batch;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t max_pages;
  uint32_t kv_pages;
  uint32_t pairs;
  float scale;
  uint32_t dt;
} rlv_op_attn_decode;
RLV_ASSERT_SIZE(rlv_op_attn_decode, 96);

// o = softmax(scale*q*k^T)*v over packed rows with shared prefixes (GQA), lse per token and head; never a TxT matrix
typedef struct {
  rlv_ref o;
  rlv_ref lse;
  rlv_ref q;
  rlv_ref k;
  rlv_ref v;
  rlv_ref segs;
  rlv_ref kv;
  rlv_ref pages;
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
} rlv_op_attn_fwd;
RLV_ASSERT_SIZE(rlv_op_attn_fwd, 136);

// writes k, v rows into pages: slots[t] = page*16 + position%16, NONE skips the row
typedef struct {
  rlv_ref kv;
  rlv_ref k;
  rlv_ref v;
  rlv_ref slots;
  uint32_t rows;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t kv_pages;
  uint32_t dt;
} rlv_op_kv_append;
RLV_ASSERT_SIZE(rlv_op_kv_append, 68);

// copies whole pages, pairs (source, destination); sources and destinations are disjoint
typedef struct {
  rlv_ref kv;
  rlv_ref pairs;
  uint32_t count;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t kv_pages;
  uint32_t dt;
} rlv_op_kv_copy;
RLV_ASSERT_SIZE(rlv_op_kv_copy, 44);

// with s = sigmoid(gate): dgate = dy*up*s*(1+gate*(1-s)), dup = dy*gate*s
typedef struct {
  rlv_ref dgate;
  rlv_ref dup;
  rlv_ref dy;
  rlv_ref gate;
  rlv_ref up;
  uint32_t n;
  uint32_t dt;
} rlv_op_swiglu_bwd;
RLV_ASSERT_SIZE(rlv_op_swiglu_bwd, 68);

// y = gate*sigmoid(gate)*up, element-wise over n elements
typedef struct {
  rlv_ref y;
  rlv_ref gate;
  rlv_ref up;
  uint32_t n;
  uint32_t dt;
} rlv_op_swiglu_fwd;
RLV_ASSERT_SIZE(rlv_op_swiglu_fwd, 44);

// dtable[ids[t]] += dy[t], tokens in ascending order; dtable float32 in the packed layout of dtype wdt
typedef struct {
  rlv_ref dtable;
  rlv_ref ids;
  rlv_ref dy;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  uint32_t dt;
  uint32_t wdt;
} rlv_op_embed_bwd;
RLV_ASSERT_SIZE(rlv_op_embed_bwd, 56);

// y[t] = table[ids[t]]; table [vocab, cols] in the packed layout (shared with a tied head)
typedef struct {
  rlv_ref y;
  rlv_ref ids;
  rlv_ref table;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  uint32_t dt;
  uint32_t wdt;
} rlv_op_embed_fwd;
RLV_ASSERT_SIZE(rlv_op_embed_fwd, 56);

// y[r] = x[index[r]]; an index beyond src_rows is an error of the stream
typedef struct {
  rlv_ref y;
  rlv_ref x;
  rlv_ref index;
  uint32_t rows;
  uint32_t src_rows;
  uint32_t cols;
  uint32_t dt;
} rlv_op_gather_rows;
RLV_ASSERT_SIZE(rlv_op_gather_rows, 52);

// dx[t] = sum of dy[r] over r with index[r] = t, r ascending; zero where no row was gathered
typedef struct {
  rlv_ref dx;
  rlv_ref dy;
  rlv_ref index;
  uint32_t rows;
  uint32_t src_rows;
  uint32_t cols;
  uint32_t dt;
} rlv_op_gather_rows_bwd;
RLV_ASSERT_SIZE(rlv_op_gather_rows_bwd, 52);

// dz_j = inv_temp*(dlogprob*(1[j=target]-p_j) - dentropy*p_j*(log p_j + H)); dx = dz*w, dw += dz^T*x; logits recomputed by chunks; logprob as logprob_fwd gives it
typedef struct {
  rlv_ref dx;
  rlv_ref dw;
  rlv_ref x;
  rlv_ref w;
  rlv_ref targets;
  rlv_ref lse;
  rlv_ref entropy;
  rlv_ref dlogprob;
  rlv_ref dentropy;
  rlv_ref work;
  rlv_ref logprob;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  float inv_temp;
  uint32_t dt;
} rlv_op_logprob_bwd;
RLV_ASSERT_SIZE(rlv_op_logprob_bwd, 152);

// z = (x*w^T)*inv_temp; lse = log sum exp z; logprob = z[target] - lse, also to again; entropy = lse - sum p*z
typedef struct {
  rlv_ref logprob;
  rlv_ref lse;
  rlv_ref entropy;
  rlv_ref x;
  rlv_ref w;
  rlv_ref targets;
  rlv_ref partial;
  rlv_ref again;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  float inv_temp;
  uint32_t dt;
} rlv_op_logprob_fwd;
RLV_ASSERT_SIZE(rlv_op_logprob_fwd, 116);

// draws ids[b] from softmax(logits*inv_temp) after top-k, top-p, min-p with Philox(key = seed, purpose; counter = counters[b]); logprob, lse, entropy unfiltered; greedy: argmax
typedef struct {
  rlv_ref ids;
  rlv_ref logprob;
  rlv_ref logits;
  rlv_ref counters;
  rlv_ref work;
  rlv_ref lse;
  rlv_ref entropy;
  uint32_t batch;
  uint32_t vocab;
  uint32_t seed;
  uint32_t purpose;
  float inv_temp;
  uint32_t top_k;
  float top_p;
  float min_p;
  uint32_t greedy;
} rlv_op_sample;
RLV_ASSERT_SIZE(rlv_op_sample, 120);

// AdamW step scaled by result.coef; bf16 parameters carry a 16-bit remainder (exact float32 master); bf16 and 8-bit moments rounded stochastically; no change if result.nonfinite
typedef struct {
  rlv_ref p;
  rlv_ref lo;
  rlv_ref g;
  rlv_ref m;
  rlv_ref v;
  rlv_ref m_scale;
  rlv_ref v_scale;
  rlv_ref result;
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
} rlv_op_adamw;
RLV_ASSERT_SIZE(rlv_op_adamw, 152);

// result = {norm f32, coef f32 = min(1, max_norm/(norm+1e-6)) (1 when max_norm = 0), nonfinite u32, 0}; norm = sqrt(sum of sums, in order)
typedef struct {
  rlv_ref result;
  rlv_ref sums;
  uint32_t slots;
  float max_norm;
} rlv_op_clip_coef;
RLV_ASSERT_SIZE(rlv_op_clip_coef, 32);

// sums[slot] = sum of g^2 in float64, fixed blocks of 65536 elements, then blocks in order
typedef struct {
  rlv_ref sums;
  rlv_ref g;
  rlv_ref partial;
  uint32_t n;
  uint32_t gdt;
  uint32_t slots;
  uint32_t slot;
} rlv_op_sq_norm;
RLV_ASSERT_SIZE(rlv_op_sq_norm, 52);

// y = a + b over n elements; y may be a or b
typedef struct {
  rlv_ref y;
  rlv_ref a;
  rlv_ref b;
  uint32_t n;
  uint32_t dt;
} rlv_op_add;
RLV_ASSERT_SIZE(rlv_op_add, 44);

// y (dtype ydt) = x (dtype dt), round to nearest even
typedef struct {
  rlv_ref y;
  rlv_ref x;
  uint32_t n;
  uint32_t dt;
  uint32_t ydt;
} rlv_op_cast;
RLV_ASSERT_SIZE(rlv_op_cast, 36);

// copies n bytes from x to y
typedef struct {
  rlv_ref y;
  rlv_ref x;
  uint32_t n;
} rlv_op_copy;
RLV_ASSERT_SIZE(rlv_op_copy, 28);

// y[i] = value, n float32 elements
typedef struct {
  rlv_ref y;
  uint32_t n;
  float value;
} rlv_op_fill;
RLV_ASSERT_SIZE(rlv_op_fill, 20);

// row-major [n,k] of dtype sdt -> packed layout of dtype dt, padding zero; lo = signed 16-bit remainder of the float32 value (dt bf16, sdt f32)
typedef struct {
  rlv_ref w;
  rlv_ref lo;
  rlv_ref src;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t sdt;
} rlv_op_pack_weight;
RLV_ASSERT_SIZE(rlv_op_pack_weight, 52);

// packed layout of dtype dt with elements of dtype edt (+ remainder lo) -> row-major [n,k] of dtype ddt
typedef struct {
  rlv_ref dst;
  rlv_ref w;
  rlv_ref lo;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
  uint32_t edt;
  uint32_t ddt;
} rlv_op_unpack_weight;
RLV_ASSERT_SIZE(rlv_op_unpack_weight, 56);

// y[m,n] = residual + (x[m,k]*w[n,k]^T rounded to dt); as gemm_nt and add
typedef struct {
  rlv_ref y;
  rlv_ref residual;
  rlv_ref x;
  rlv_ref w;
  rlv_ref work;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t dt;
} rlv_op_linear_residual;
RLV_ASSERT_SIZE(rlv_op_linear_residual, 76);

// y = rms_norm(h)*weight rounded to dt; q = y*wq^T + bq, k = y*wk^T + bk, v = y*wv^T + bv; as rms_norm_fwd and gemm_nt
typedef struct {
  rlv_ref q;
  rlv_ref k;
  rlv_ref v;
  rlv_ref h;
  rlv_ref weight;
  rlv_ref wq;
  rlv_ref wk;
  rlv_ref wv;
  rlv_ref bq;
  rlv_ref bk;
  rlv_ref bv;
  rlv_ref work;
  uint32_t m;
  uint32_t cols;
  uint32_t nq;
  uint32_t nkv;
  float eps;
  uint32_t dt;
} rlv_op_norm_qkv;
RLV_ASSERT_SIZE(rlv_op_norm_qkv, 168);

// x = rms_norm(h)*weight rounded to dt; y = silu(x*wgate^T)*(x*wup^T), both products rounded to dt; as rms_norm_fwd, gemm_nt and swiglu_fwd
typedef struct {
  rlv_ref y;
  rlv_ref h;
  rlv_ref weight;
  rlv_ref wgate;
  rlv_ref wup;
  rlv_ref work;
  uint32_t m;
  uint32_t cols;
  uint32_t n;
  float eps;
  uint32_t dt;
} rlv_op_norm_swiglu;
RLV_ASSERT_SIZE(rlv_op_norm_swiglu, 92);

// y = rope(rms_norm(q)) per head; rope(rms_norm(k)) and v go to pages: slots[t] = page*16 + position%16, NONE skips; as qk_norm_rope_fwd and kv_append
typedef struct {
  rlv_ref y;
  rlv_ref kv;
  rlv_ref q;
  rlv_ref k;
  rlv_ref v;
  rlv_ref qweight;
  rlv_ref kweight;
  rlv_ref positions;
  rlv_ref rope;
  rlv_ref slots;
  rlv_ref work;
  uint32_t rows;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t max_pos;
  uint32_t kv_pages;
  float eps;
  uint32_t dt;
} rlv_op_rope_append;
RLV_ASSERT_SIZE(rlv_op_rope_append, 164);

// du[m,r] = (scale where column < split, else scale2) * dy[m,n] * b[n,r] rounded to dt; dx[m,k] (+)= du * a[r,k]; da += du^T * x; db += dy^T * u; in da and db rows of du and u count as zero in columns < split where bit 0 of routes[m] is set, in the others where bit 1 is; da, db float32 in the packed layout of dtype dt; one chain per output; du is written where dx or da is wanted; routes and masked, which holds u and du with these zeros, are both given or neither
typedef struct {
  rlv_ref dx;
  rlv_ref da;
  rlv_ref db;
  rlv_ref du;
  rlv_ref dy;
  rlv_ref x;
  rlv_ref u;
  rlv_ref a;
  rlv_ref b;
  rlv_ref routes;
  rlv_ref masked;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t r;
  uint32_t split;
  float scale;
  float scale2;
  uint32_t dt;
  uint32_t accumulate;
} rlv_op_lora_bwd;
RLV_ASSERT_SIZE(rlv_op_lora_bwd, 168);

// u[m,r] = (scale where column < split, else scale2) * (x[m,k] * a[r,k]^T) rounded to dt; y[m,n] = base[m,n] + u * b[n,r]^T; one chain over k, one over r; base may be y; where bit 0 of routes[m] is set, a and b are constants in columns < split, where bit 1 is, in the others: this is for the gradient alone
typedef struct {
  rlv_ref y;
  rlv_ref u;
  rlv_ref base;
  rlv_ref x;
  rlv_ref a;
  rlv_ref b;
  rlv_ref routes;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t r;
  uint32_t split;
  float scale;
  float scale2;
  uint32_t dt;
} rlv_op_lora_fwd;
RLV_ASSERT_SIZE(rlv_op_lora_fwd, 116);

// y[i] = scale * x[i], or 0 * x[i] where word (i % 256)/64 of Philox(key seed, purpose; counter (i/256)*64 + i%64, site, step, part) is below threshold
typedef struct {
  rlv_ref y;
  rlv_ref x;
  uint32_t n;
  uint32_t seed;
  uint32_t purpose;
  uint32_t site;
  uint32_t step;
  uint32_t part;
  uint32_t threshold;
  float scale;
  uint32_t dt;
} rlv_op_dropout;
RLV_ASSERT_SIZE(rlv_op_dropout, 60);

// codes*scales in float32, row-major [n,k]
typedef struct {
  rlv_ref dst;
  rlv_ref codes;
  rlv_ref scales;
  uint32_t n;
  uint32_t k;
  uint32_t qt;
} rlv_op_dequantize_weight;
RLV_ASSERT_SIZE(rlv_op_dequantize_weight, 48);

// y[t] = codes*scales of row ids[t] of a quantized [vocab, cols], codes as in quant_linear, rounded to dt
typedef struct {
  rlv_ref y;
  rlv_ref ids;
  rlv_ref codes;
  rlv_ref scales;
  uint32_t rows;
  uint32_t cols;
  uint32_t vocab;
  uint32_t qt;
  uint32_t dt;
} rlv_op_quant_embed;
RLV_ASSERT_SIZE(rlv_op_quant_embed, 68);

// y[m,n] = x[m,k] * w[n,k]^T + bias[n]; w codes and scales; int8: chain over k, times scale; nf4: chains over blocks of 64, fma(scale, chain, sum) in order; y in dtype ydt
typedef struct {
  rlv_ref y;
  rlv_ref x;
  rlv_ref codes;
  rlv_ref scales;
  rlv_ref bias;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t qt;
  uint32_t dt;
  uint32_t ydt;
} rlv_op_quant_linear;
RLV_ASSERT_SIZE(rlv_op_quant_linear, 84);

// dx[m,k] (+)= dy[m,n] * w[n,k], w = codes*scales rounded to dt; one accumulation chain over n per output
typedef struct {
  rlv_ref dx;
  rlv_ref dy;
  rlv_ref codes;
  rlv_ref scales;
  uint32_t m;
  uint32_t n;
  uint32_t k;
  uint32_t qt;
  uint32_t dt;
  uint32_t accumulate;
} rlv_op_quant_linear_bwd;
RLV_ASSERT_SIZE(rlv_op_quant_linear_bwd, 72);

// row-major [n,k] of dtype sdt -> codes and scales by the largest magnitude of a row (int8) or block (nf4)
typedef struct {
  rlv_ref codes;
  rlv_ref scales;
  rlv_ref src;
  uint32_t n;
  uint32_t k;
  uint32_t qt;
  uint32_t sdt;
} rlv_op_quantize_weight;
RLV_ASSERT_SIZE(rlv_op_quantize_weight, 52);
