// Tests of the layer kernels (norm, rope, mlp, embedding, elementwise) on one instruction set, without the
// library: g++ -DRLV_ISA=... -Imetal/include, from the project's root. Truth: float64 forwards, their
// complex-step gradients, and plain loops in the documented order.
#include "../../metal/cpu/kernels/elementwise.cpp"
#include "../../metal/cpu/kernels/embedding.cpp"
#include "../../metal/cpu/kernels/mlp.cpp"
#include "../../metal/cpu/kernels/norm.cpp"
#include "../../metal/cpu/kernels/rope.cpp"
#include "kernel_harness.h"

namespace {

// ---- norm
// --------------------------------------------------------------------------------------------------
vector<Complex> norm_reference(const vector<Complex>& x_and_weight, double eps) {
  const size_t n = x_and_weight.size() / 2;
  Complex sum = 0;
  for (size_t i = 0; i < n; i++) sum += x_and_weight[i] * x_and_weight[i];
  const Complex r = 1.0 / std::sqrt(sum / double(n) + eps);
  vector<Complex> y(n);
  for (size_t i = 0; i < n; i++) y[i] = x_and_weight[i] * r * x_and_weight[n + i];
  return y;
}

void test_norm(uint32_t dt, uint32_t rows, uint32_t cols, bool fused) {
  const std::string name = label(fused ? "rms_norm fused" : "rms_norm", dt, rows, cols);
  const float eps = 1e-5f;
  const size_t n = size_t(rows) * cols, lines = ceil_div(rows, RLV_ROW_BLOCK);
  Array x(dt, n, 1.5), delta(dt, n, 0.5), weight(RLV_F32, cols, 1), dy(dt, n, 1), dres(dt, n, 1);
  Array first_y(dt, 0), first_dx(dt, 0), first_dw(RLV_F32, 0), first_h(dt, 0);
  const Array dw_before(RLV_F32, cols, 1);
  for (uint32_t threads = 1; threads <= 3; threads++) {
    Array y(dt, n), h(dt, n), dx(dt, n), dw = dw_before, partial(RLV_F32, lines * cols, 1e9);
    run(rms_norm_fwd,
        args::RmsNormFwd{y.ptr(), fused ? h.ptr() : nullptr, x.ptr(), fused ? delta.ptr() : nullptr,
                         weight.ptr(), rows, cols, eps, dt},
        threads);
    if (!fused) h = x;
    run(rms_norm_bwd,
        args::RmsNormBwd{dx.ptr(), dw.ptr(), dy.ptr(), h.ptr(), weight.ptr(), fused ? dres.ptr() : nullptr,
                         partial.ptr(), rows, cols, eps, dt},
        threads);
    if (threads == 1) {
      first_y = y, first_dx = dx, first_dw = dw, first_h = h;
    } else {
      check(y == first_y && dx == first_dx && dw == first_dw && h == first_h,
            name + ": thread count changes bits");
    }
  }
  vector<double> want_y(n), want_dx(n), want_dw(cols);
  bool exact_h = true;
  for (uint32_t i = 0; i < cols; i++) want_dw[i] = dw_before[i];
  for (uint32_t t = 0; t < rows; t++) {
    vector<double> in(2 * cols), cotangent(cols);
    for (uint32_t i = 0; i < cols; i++) {
      Array rounded(dt, 1);
      rounded.set(0, float(x[t * cols + i]) + float(delta[t * cols + i]));
      if (fused) exact_h = exact_h && rounded[0] == first_h[t * cols + i];
      in[i] = first_h[t * cols + i];
      in[cols + i] = weight[i];
      cotangent[i] = dy[t * cols + i];
    }
    const auto f = [&](const vector<Complex>& z) { return norm_reference(z, eps); };
    const vector<Complex> y = f(vector<Complex>(in.begin(), in.end()));
    const vector<double> g = gradient(f, in, cotangent);
    for (uint32_t i = 0; i < cols; i++) {
      want_y[t * cols + i] = y[i].real();
      want_dx[t * cols + i] = g[i] + (fused ? dres[t * cols + i] : 0);
      want_dw[i] += g[cols + i];
    }
  }
  check(exact_h, name + ": h");
  check(close(first_y, want_y), name + ": y");
  check(close(first_dx, want_dx, 5e-6, 1), name + ": dx");
  check(close(first_dw, want_dw, 1e-5), name + ": dweight");
  // One row alone gives the bits it has in the batch.
  const size_t at = size_t(rows - 1) * cols;
  Array y(dt, cols), dx(dt, cols), hr = first_h.slice(at, cols), dyr = dy.slice(at, cols),
                                   dr = dres.slice(at, cols);
  run(rms_norm_fwd, args::RmsNormFwd{y.ptr(), nullptr, hr.ptr(), nullptr, weight.ptr(), 1, cols, eps, dt});
  run(rms_norm_bwd, args::RmsNormBwd{dx.ptr(), nullptr, dyr.ptr(), hr.ptr(), weight.ptr(),
                                     fused ? dr.ptr() : nullptr, nullptr, 1, cols, eps, dt});
  check(y == first_y.slice(at, cols) && dx == first_dx.slice(at, cols),
        name + ": a row depends on its batch");
}

// ---- rope
// --------------------------------------------------------------------------------------------------
vector<Complex> rope_reference(const vector<Complex>& x_and_weight, bool normed, double eps,
                               const double* angles) {
  const size_t n = x_and_weight.size() / 2, half = n / 2;
  vector<Complex> v(x_and_weight.begin(), x_and_weight.begin() + long(n)), y(n);
  if (normed) v = norm_reference(x_and_weight, eps);
  for (size_t i = 0; i < half; i++) {
    y[i] = v[i] * angles[i] - v[i + half] * angles[half + i];
    y[i + half] = v[i + half] * angles[i] + v[i] * angles[half + i];
  }
  return y;
}

void test_rope(uint32_t dt, uint32_t rows, uint32_t heads, uint32_t dim, bool normed) {
  const std::string name = label(normed ? "qk_norm_rope" : "rope", dt, rows * heads, dim);
  const float eps = 1e-6f;
  const uint32_t max_pos = 40;
  const size_t n = size_t(rows) * heads * dim, lines = ceil_div(rows, RLV_ROW_BLOCK);
  Array x(dt, n, 1.5), weight(RLV_F32, dim, 1), dy(dt, n, 1), rope(RLV_F32, max_pos * dim);
  for (uint32_t p = 0; p < max_pos; p++)
    for (uint32_t i = 0; i < dim / 2; i++) {
      const double angle = p * std::pow(10000.0, -2.0 * i / dim);
      rope.set(p * dim + i, std::cos(angle));
      rope.set(p * dim + dim / 2 + i, std::sin(angle));
    }
  vector<uint32_t> positions(rows);
  for (uint32_t& p : positions) p = engine() % max_pos;
  const Array dw_before(RLV_F32, dim, 1);
  Array first_y(dt, 0), first_dx(dt, 0), first_dw(RLV_F32, 0);
  void* w = normed ? weight.ptr() : nullptr;
  for (uint32_t threads = 1; threads <= 3; threads++) {
    Array y(dt, n), dx(dt, n), dw = dw_before, partial(RLV_F32, lines * dim, 1e9);
    run(qk_norm_rope_fwd,
        args::QkNormRopeFwd{y.ptr(), x.ptr(), w, positions.data(), rope.ptr(), rows, heads, dim, max_pos, eps,
                            dt},
        threads);
    run(qk_norm_rope_bwd,
        args::QkNormRopeBwd{dx.ptr(), normed ? dw.ptr() : nullptr, dy.ptr(), x.ptr(), w, positions.data(),
                            rope.ptr(), partial.ptr(), rows, heads, dim, max_pos, eps, dt},
        threads);
    if (threads == 1)
      first_y = y, first_dx = dx, first_dw = dw;
    else
      check(y == first_y && dx == first_dx && dw == first_dw, name + ": thread count changes bits");
  }
  vector<double> want_y(n), want_dx(n), want_dw(dim);
  for (uint32_t i = 0; i < dim; i++) want_dw[i] = dw_before[i];
  for (uint32_t t = 0; t < rows * heads; t++) {
    vector<double> in(2 * dim), cotangent(dim), angles(dim);
    for (uint32_t i = 0; i < dim; i++) {
      in[i] = x[t * dim + i], in[dim + i] = weight[i], cotangent[i] = dy[t * dim + i];
      angles[i] = rope[positions[t / heads] * dim + i];
    }
    const auto f = [&](const vector<Complex>& z) { return rope_reference(z, normed, eps, angles.data()); };
    const vector<Complex> y = f(vector<Complex>(in.begin(), in.end()));
    const vector<double> g = gradient(f, in, cotangent);
    for (uint32_t i = 0; i < dim; i++) {
      want_y[t * dim + i] = y[i].real(), want_dx[t * dim + i] = g[i];
      if (normed) want_dw[i] += g[dim + i];
    }
  }
  check(close(first_y, want_y), name + ": y");
  check(close(first_dx, want_dx, 5e-6, 1), name + ": dx");
  check(close(first_dw, want_dw, 1e-5), name + ": dweight");
  const size_t row = size_t(heads) * dim, at = (rows - 1) * row;
  Array y(dt, row), xr = x.slice(at, row);
  run(qk_norm_rope_fwd, args::QkNormRopeFwd{y.ptr(), xr.ptr(), w, &positions[rows - 1], rope.ptr(), 1, heads,
                                            dim, max_pos, eps, dt});
  check(y == first_y.slice(at, row), name + ": a row depends on its batch");
  positions[0] = max_pos;
  Array ignored(dt, n);
  check(!run(qk_norm_rope_fwd, args::QkNormRopeFwd{ignored.ptr(), x.ptr(), w, positions.data(), rope.ptr(),
                                                   rows, heads, dim, max_pos, eps, dt})
             .empty(),
        name + ": max_pos");
}

// ---- element-wise
// ------------------------------------------------------------------------------------------
void test_elementwise(uint32_t dt, uint32_t n) {
  const std::string name = label("element-wise", dt, n, 1);
  Array gate(dt, n, 3), up(dt, n, 1), dy(dt, n, 1);
  if (n > 2) gate.set(0, 200), gate.set(1, -200), gate.set(2, -30);
  Array first_y(dt, 0), first_g(dt, 0), first_u(dt, 0);
  for (uint32_t threads = 1; threads <= 3; threads++) {
    Array y(dt, n), dgate(dt, n), dup(dt, n), sum(dt, n), wide(RLV_F32, n), narrow(RLV_BF16, n),
        copied(dt, n);
    run(swiglu_fwd, args::SwigluFwd{y.ptr(), gate.ptr(), up.ptr(), n, dt}, threads);
    run(swiglu_bwd, args::SwigluBwd{dgate.ptr(), dup.ptr(), dy.ptr(), gate.ptr(), up.ptr(), n, dt}, threads);
    if (threads == 1)
      first_y = y, first_g = dgate, first_u = dup;
    else
      check(y == first_y && dgate == first_g && dup == first_u, name + ": thread count changes bits");
    run(add, args::Add{sum.ptr(), gate.ptr(), up.ptr(), n, dt}, threads);
    run(cast, args::Cast{wide.ptr(), gate.ptr(), n, dt, RLV_F32}, threads);
    run(cast, args::Cast{narrow.ptr(), gate.ptr(), n, dt, RLV_BF16}, threads);
    run(copy, args::Copy{copied.ptr(), gate.ptr(), n * (dt == RLV_BF16 ? 2 : 4)}, threads);
    Array want_sum(dt, n), want_narrow(RLV_BF16, n), filled(RLV_F32, n), want_filled(RLV_F32, n);
    bool same = true;
    for (uint32_t i = 0; i < n; i++) {
      want_sum.set(i, float(gate[i]) + float(up[i]));
      want_narrow.set(i, gate[i]);
      want_filled.set(i, -2.5);
      same = same && wide[i] == gate[i];
    }
    run(fill, args::Fill{filled.ptr(), n, -2.5f}, threads);
    check(sum == want_sum, name + ": add");
    check(same && narrow == want_narrow, name + ": cast");
    check(copied == gate, name + ": copy");
    check(filled == want_filled, name + ": fill");
    run(add, args::Add{sum.ptr(), sum.ptr(), up.ptr(), n, dt}, threads);
    for (uint32_t i = 0; i < n; i++) want_sum.set(i, float(want_sum[i]) + float(up[i]));
    check(sum == want_sum, name + ": add in place");
  }
  vector<double> y(n), g(n), u(n);
  for (uint32_t i = 0; i < n; i++) {
    const double s = 1 / (1 + std::exp(-gate[i]));
    y[i] = gate[i] * s * up[i];
    const vector<double> both = gradient(
        [](const vector<Complex>& z) { return vector<Complex>{z[0] / (1.0 + std::exp(-z[0])) * z[1]}; },
        {gate[i], up[i]}, {dy[i]});
    g[i] = both[0], u[i] = both[1];
  }
  check(close(first_y, y, 1e-6), name + ": swiglu");
  check(close(first_g, g, 1e-6), name + ": dgate");
  check(close(first_u, u, 1e-6), name + ": dup");
}

// ---- embedding
// ---------------------------------------------------------------------------------------------
size_t packed(uint32_t id, uint32_t k, uint32_t cols, uint32_t wdt) {
  if (wdt == RLV_F32) return (size_t(id / 32) * cols + k) * 32 + id % 32;
  return ((size_t(id / 32) * ((cols + 1) / 2) + k / 2) * 32 + id % 32) * 2 + k % 2;
}

void test_embedding(uint32_t dt, uint32_t wdt, uint32_t rows, uint32_t cols, uint32_t vocab) {
  const std::string name = label(wdt == RLV_BF16 ? "embedding, bf16 table," : "embedding", dt, rows, cols);
  const size_t len = packed_len(vocab, cols, wdt), n = size_t(rows) * cols;
  Array table(wdt, len, 1), dy(dt, n, 1);
  const Array before(RLV_F32, len, 1);
  vector<uint32_t> ids(rows);
  for (uint32_t& id : ids) id = engine() % vocab;
  Array want_y(dt, n), want_dtable = before, want_rows(dt, n), want_dx(dt, size_t(vocab) * cols);
  for (uint32_t t = 0; t < rows; t++)
    for (uint32_t k = 0; k < cols; k++) {
      const size_t at = packed(ids[t], k, cols, wdt);
      want_y.set(t * cols + k, table[at]);
      want_dtable.set(at, float(want_dtable[at]) + float(dy[t * cols + k]));
    }
  Array source(dt, size_t(vocab) * cols, 1);
  for (uint32_t v = 0; v < vocab; v++)
    for (uint32_t k = 0; k < cols; k++) {
      float sum = 0;
      for (uint32_t t = 0; t < rows; t++)
        if (ids[t] == v) sum += float(dy[t * cols + k]), want_rows.set(t * cols + k, source[v * cols + k]);
      want_dx.set(v * cols + k, sum);
    }
  for (uint32_t threads = 1; threads <= 3; threads++) {
    Array y(dt, n), dtable = before, gathered(dt, n), dx(dt, size_t(vocab) * cols, 1);
    run(embed_fwd, args::EmbedFwd{y.ptr(), ids.data(), table.ptr(), rows, cols, vocab, dt, wdt}, threads);
    run(embed_bwd, args::EmbedBwd{dtable.ptr(), ids.data(), dy.ptr(), rows, cols, vocab, dt, wdt}, threads);
    run(gather_rows, args::GatherRows{gathered.ptr(), source.ptr(), ids.data(), rows, vocab, cols, dt},
        threads);
    run(gather_rows_bwd, args::GatherRowsBwd{dx.ptr(), dy.ptr(), ids.data(), rows, vocab, cols, dt}, threads);
    check(y == want_y, name + ": embed_fwd");
    check(dtable == want_dtable, name + ": embed_bwd");
    check(gathered == want_rows, name + ": gather_rows");
    check(dx == want_dx, name + ": gather_rows_bwd");
  }
  ids[rows / 2] = vocab;
  Array y(dt, n), dtable = before, dx(dt, size_t(vocab) * cols);
  check(
      !run(embed_fwd, args::EmbedFwd{y.ptr(), ids.data(), table.ptr(), rows, cols, vocab, dt, wdt}).empty() &&
          !run(embed_bwd, args::EmbedBwd{dtable.ptr(), ids.data(), dy.ptr(), rows, cols, vocab, dt, wdt})
               .empty() &&
          !run(gather_rows, args::GatherRows{y.ptr(), source.ptr(), ids.data(), rows, vocab, cols, dt})
               .empty() &&
          !run(gather_rows_bwd, args::GatherRowsBwd{dx.ptr(), dy.ptr(), ids.data(), rows, vocab, cols, dt})
               .empty(),
      name + ": an id out of range is an error");
}

}  // namespace

int main() {
  for (uint32_t dt : {RLV_F32, RLV_BF16}) {
    for (uint32_t cols : {1u, 6u, 32u, 100u, 129u})
      for (uint32_t rows : {1u, 3u, 65u}) test_norm(dt, rows, cols, cols % 2 == 0);
    test_norm(dt, 200, 24, true);
    test_norm(dt, 200, 24, false);
    for (bool normed : {false, true}) {
      test_rope(dt, 3, 4, 6, normed);
      test_rope(dt, 130, 2, 16, normed);
      test_rope(dt, 65, 1, 64, normed);
      test_rope(dt, 5, 2, 128, normed);
      test_rope(dt, 2, 3, 2, normed);
    }
    for (uint32_t n : {1u, 15u, 64u, 1000u}) test_elementwise(dt, n);
    for (uint32_t wdt : {RLV_F32, RLV_BF16}) {
      test_embedding(dt, wdt, 1, 5, 3);
      test_embedding(dt, wdt, 70, 33, 40);
      test_embedding(dt, wdt, 9, 128, 100);
    }
  }
  return report();
}
