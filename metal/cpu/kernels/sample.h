// The distribution that `sample` draws from, for tests and for whoever wants to see it.
#pragma once
#include "../ctx.h"
#include "../vec.h"

namespace rlv {
namespace RLV_ISA {

// top_k 0 or >= vocab, top_p >= 1 and min_p <= 0 are off.
struct SampleFilter {
  uint32_t top_k;
  float top_p, min_p;
};

// probs[vocab] = softmax(logits*inv_temp) after the filters, dropped tokens exactly 0. False if the logits
// are not finite (NaN, +inf, or nothing but -inf).
bool sample_distribution(Ctx& c, const float* logits, uint32_t vocab, float inv_temp,
                         const SampleFilter& filter, float* probs);

}  // namespace RLV_ISA
}  // namespace rlv
