// What a kernel can report about its data: X(code, text). The host adds the value it met.
#pragma once
#define RLV_KERNEL_ERRORS(X)                                          \
  X(EMBED_ID, "embed_fwd: id outside the vocabulary")                 \
  X(EMBED_BWD_ID, "embed_bwd: id outside the vocabulary")             \
  X(QUANT_EMBED_ID, "quant_embed: id outside the vocabulary")         \
  X(GATHER_INDEX, "gather_rows: index beyond the rows")               \
  X(GATHER_BWD_INDEX, "gather_rows_bwd: index beyond the rows")       \
  X(ROPE_POSITION, "qk_norm_rope_fwd: position beyond max_pos")       \
  X(ROPE_BWD_POSITION, "qk_norm_rope_bwd: position beyond max_pos")   \
  X(TARGET, "logprob_fwd: target outside the vocabulary")             \
  X(TARGET_BWD, "logprob_bwd: target outside the vocabulary")         \
  X(LOGITS, "sample: logits are not finite")                          \
  X(SEGMENT_ROWS, "attn_fwd: segment beyond the rows")                \
  X(SEGMENT_PARENT, "attn_fwd: parent after its segment")             \
  X(SEGMENT_ROOT, "attn_fwd: root after its segment")                 \
  X(CACHED_PREFIX, "attn_fwd: cached prefix beyond the pages")        \
  X(CACHED_PAGE, "attn_fwd: page outside the store")                  \
  X(SEGMENT_BWD, "attn_bwd: segment beyond the rows")                 \
  X(DECODE_LENGTH, "attn_decode: length does not fit the page table") \
  X(DECODE_PAGE, "attn_decode: page outside the store")               \
  X(APPEND_SLOT, "kv_append: slot outside the store")                 \
  X(COPY_PAGE, "kv_copy: page outside the store")

#define RLV_ERROR_CODE(name, text) RLV_BAD_##name,
enum { RLV_BAD_NOTHING = 0, RLV_KERNEL_ERRORS(RLV_ERROR_CODE) RLV_BAD_COUNT };
#undef RLV_ERROR_CODE
