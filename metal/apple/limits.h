// The GPU's own limits, measured: what benchmarks are compared with.
#pragma once
#include "pipelines.h"

namespace rlv {
namespace metal {

// Billions of floating-point operations a second of 8x8 products from registers. 0 if it cannot be measured.
double measure_products(MTL::Device* device, Pipelines& pipelines, double seconds);
// Billions of bytes read a second.
double measure_reads(MTL::Device* device, Pipelines& pipelines, double seconds);

}  // namespace metal
}  // namespace rlv
