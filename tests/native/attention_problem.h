// Problems for the source of the CUDA attention's blocks, run on the host: tensors between guards, and every output compared with float64.
#pragma once

#include <random>

#include "block_emulation.h"
#include "masked_attention_layout.h"

using namespace jepa;

namespace {

constexpr uint16_t kPoison = 0x7fff;  // NaN in both types
constexpr float kUnset = -12345.0f;
constexpr double kNever = -HUGE_VAL;

std::mt19937 engine(7);
float normal() { return std::normal_distribution<float>()(engine); }

struct Case {
  const char* name;
  int batch, heads, query_len, key_len;
  bool rope, tables_of_batch;
  double scale;
  int tokens_per_frame, query_frame_offset;
  std::vector<int32_t> key_lengths, cu_seqlens;
  int max_seqlen;
};

const std::vector<Case> kCases = {
    {"packed, rope", 2, 2, 70, 70, true, true, 0.2, 0, 0, {}, {}, 0},
    {"cross, negative scale", 1, 2, 33, 130, false, false, -0.3, 0, 0, {}, {}, 0},
    {"frames, rope", 1, 1, 152, 152, true, false, 0.2, 19, 0, {}, {}, 0},
    {"cached frames", 1, 2, 42, 147, true, false, 0.2, 21, 5, {}, {}, 0},
    {"frames without keys", 1, 1, 140, 105, false, false, 0.2, 35, -2, {}, {}, 0},
    {"lengths", 3, 1, 67, 67, false, false, 0.2, 0, 0, {0, 41, 67}, {}, 0},
    {"ragged, rope", 1, 2, 290, 290, true, false, 0.2, 0, 0, {}, {0, 5, 5, 70, 71, 140}, 70},
    {"lengths out of range", 2, 1, 67, 67, false, false, 0.2, 0, 0, {-5, 100}, {}, 0},
    {"ragged out of range, rope", 1, 1, 70, 70, true, false, 0.2, 0, 0, {}, {-3, 40, 90}, 40},
    {"no sequence", 1, 2, 70, 70, false, false, 0.2, 0, 0, {}, {0, 0}, 0},
    {"steep", 1, 1, 40, 300, false, false, 3.0, 0, 0, {}, {}, 0},  // maxima that rise far, again and again
    {"scale zero", 1, 1, 5, 66, false, false, 0.0, 0, 0, {}, {}, 0},
};

template <typename Value>
struct Tensor {
  std::vector<uint16_t> bits;
  HeadRows rows{};
  int head_dim;
  uint16_t* at(int b, int h, int n) {
    return static_cast<uint16_t*>(rows.data) + b * rows.batch_stride + h * rows.head_stride + n * rows.row_stride;
  }
  float value(int b, int h, int n, int c) { return to_float(Value{at(b, h, n)[c]}); }
};

void hold(std::vector<emulation::Range>& memory, const void* data, size_t bytes, bool writable) {
  const auto* begin = static_cast<const unsigned char*>(data);
  memory.push_back({begin, begin + bytes, writable});
}

// A problem's tensors, and what its blocks read and write.
template <typename Value, int kHeadDim>
struct Problem {
  Case c;
  Tensor<Value> q, k, v, rotated_q, rotated_k;
  std::vector<uint16_t> packed, out;
  std::vector<float> cos, sin, query_cos, query_sin, lse;
  MaskedAttentionCall call{};
  static constexpr int kGuard = 64;

  explicit Problem(const Case& given) : c(given) {
    make_operands();
    make_tables();
    rotated_q = copy_of(q, c.query_len, query_cos, query_sin);
    rotated_k = copy_of(k, c.key_len, cos, sin);
    call.q = q.rows, call.v = v.rows, call.k = rotated_k.rows;
    const int64_t width = c.heads * kHeadDim;
    out.assign(static_cast<size_t>(c.batch * c.query_len * width + 2 * kGuard), kPoison);
    call.out = {out.data() + kGuard, c.query_len * width, kHeadDim, width};
    lse.assign(static_cast<size_t>(c.batch * c.heads * c.query_len + 2 * kGuard), kUnset);
    call.lse = lse.data() + kGuard;
    if (c.rope) call.query_tables = {query_cos.data(), query_sin.data(), c.tables_of_batch ? c.query_len * kHeadDim : 0};
    call.key_lengths = c.key_lengths.empty() ? nullptr : c.key_lengths.data();
    call.cu_seqlens = c.cu_seqlens.empty() ? nullptr : c.cu_seqlens.data();
    call.num_sequences = static_cast<int>(c.cu_seqlens.size()) - 1, call.max_seqlen = c.max_seqlen;
    call.batch = c.batch, call.heads = c.heads, call.query_len = c.query_len, call.key_len = c.key_len, call.head_dim = kHeadDim;
    call.tokens_per_frame = c.tokens_per_frame, call.query_frame_offset = c.query_frame_offset;
    set_scale(call, c.scale);
  }

  // Self-attention reads packed (B, N, 3, H, D); queries of their own lie as (B, N, H, D + 8) with NaN between rows.
  void make_operands() {
    const bool self = c.query_len == c.key_len;
    const int64_t width = c.heads * kHeadDim, parts = self ? 3 : 2;
    packed.assign(static_cast<size_t>(c.batch * c.key_len * parts * width), 0);
    for (uint16_t& bits : packed) bits = Cast<Value>::from(normal()).bits;
    const HeadRows rows{nullptr, c.key_len * parts * width, kHeadDim, parts * width};
    for (Tensor<Value>* x : {&q, &k, &v}) x->rows = rows, x->head_dim = kHeadDim;
    k.rows.data = packed.data() + (parts - 2) * width, v.rows.data = packed.data() + (parts - 1) * width;
    q.rows.data = packed.data();
    if (!self) {
      constexpr int kRow = kHeadDim + 8;
      q.bits.assign(static_cast<size_t>(c.batch * c.query_len * c.heads * kRow), kPoison);
      q.rows = {q.bits.data(), c.query_len * c.heads * kRow, kRow, c.heads * kRow};
      for (int b = 0; b < c.batch; ++b)
        for (int h = 0; h < c.heads; ++h)
          for (int n = 0; n < c.query_len; ++n)
            for (int i = 0; i < kHeadDim; ++i) q.at(b, h, n)[i] = Cast<Value>::from(normal()).bits;
    }
    for (int b = 0; b < c.batch; ++b)
      for (int j = 0; j < c.key_len; ++j) {
        bool seen = false;
        for (int i = 0; i < c.query_len; ++i) seen = seen || sees(b, i, j);
        for (int h = 0; !seen && h < c.heads; ++h)  // what nobody sees must not matter
          for (Tensor<Value>* x : {&k, &v}) std::fill(x->at(b, h, j), x->at(b, h, j) + kHeadDim, kPoison);
      }
  }

  void make_tables() {
    const int tables = c.tables_of_batch ? c.batch : 1;
    for (auto* table : {&cos, &sin, &query_cos, &query_sin}) {
      const bool of_keys = table == &cos || table == &sin;
      table->resize(static_cast<size_t>(tables * (of_keys ? c.key_len : c.query_len) * kHeadDim));
      for (float& x : *table) x = std::sin(3 * normal());  // any pair of tables: V-JEPA 2's are no rotation either
    }
  }

  Tensor<Value> copy_of(Tensor<Value>& x, int tokens, const std::vector<float>& cosines, const std::vector<float>& sines) {
    Tensor<Value> y;
    y.bits.resize(static_cast<size_t>(c.batch * c.heads * tokens * kHeadDim));
    y.rows = {y.bits.data(), c.heads * tokens * kHeadDim, tokens * kHeadDim, kHeadDim};
    for (int b = 0; b < c.batch; ++b)
      for (int h = 0; h < c.heads; ++h)
        for (int n = 0; n < tokens; ++n)
          for (int i = 0; i < kHeadDim; ++i) {
            const size_t at = static_cast<size_t>(((c.tables_of_batch ? b * tokens : 0) + n) * kHeadDim + i);
            const float turned = x.value(b, h, n, i) * cosines[at] + x.value(b, h, n, i ^ 1) * sines[at];
            y.at(b, h, n)[i] = c.rope ? Cast<Value>::from(turned).bits : x.at(b, h, n)[i];
          }
    return y;
  }

  // The definition of every mask, pair by pair.
  bool sees(int b, int i, int j) const {
    if (c.tokens_per_frame > 0) return j / c.tokens_per_frame <= c.query_frame_offset + i / c.tokens_per_frame;
    if (!c.key_lengths.empty()) return j < c.key_lengths[static_cast<size_t>(b)];
    for (size_t s = 0; s + 1 < c.cu_seqlens.size(); ++s) {
      const auto in = [&](int n) { return n >= c.cu_seqlens[s] && n < c.cu_seqlens[s + 1]; };
      if (in(i)) return in(j);
    }
    return c.cu_seqlens.empty();
  }

  void check_row(int b, int h, int i) {
    std::vector<double> scores(static_cast<size_t>(c.key_len), kNever);
    double top = kNever, sum = 0;
    for (int j = 0; j < c.key_len; ++j) {
      if (!sees(b, i, j)) continue;
      double score = 0;
      for (int d = 0; d < kHeadDim; ++d) score += static_cast<double>(rotated_q.value(b, h, i, d)) * rotated_k.value(b, h, j, d);
      scores[static_cast<size_t>(j)] = score * c.scale;
      top = std::max(top, score * c.scale);
    }
    for (double& score : scores) sum += score = score == kNever ? 0 : std::exp(score - top);
    const float* const lse_row = call.lse + (b * c.heads + h) * c.query_len;
    if (top == kNever)
      REQUIRE(lse_row[i] == -HUGE_VALF);
    else
      REQUIRE(std::fabs(lse_row[i] - (top + std::log(sum))) <= 2e-5 * (1 + std::fabs(lse_row[i])));
    const double unit = std::is_same_v<Value, bf16> ? 0x1p-8 : 0x1p-11;  // of rounding
    const uint16_t* const row = static_cast<uint16_t*>(call.out.data) + b * call.out.batch_stride + h * kHeadDim + i * call.out.row_stride;
    for (int d = 0; d < kHeadDim; ++d) {
      double right = 0, size = 0;
      for (int j = 0; j < c.key_len; ++j) {
        if (scores[static_cast<size_t>(j)] == 0) continue;
        const double part = scores[static_cast<size_t>(j)] / sum * v.value(b, h, j, d);
        right += part, size += std::fabs(part);
      }
      // Weights are rounded once, and the result once.
      const double error = std::fabs(to_float(Value{row[d]}) - right);
      if (top == kNever)
        REQUIRE(row[d] == 0);
      else
        REQUIRE(error <= 1.01 * unit * (size + std::fabs(right)) + 1e-5);
    }
  }

  void check() {
    for (int b = 0; b < c.batch; ++b)
      for (int h = 0; h < c.heads; ++h)
        for (int i = 0; i < c.query_len; ++i) check_row(b, h, i);
    for (int i = 0; i < kGuard; ++i) {
      REQUIRE(out[static_cast<size_t>(i)] == kPoison && out[out.size() - 1 - static_cast<size_t>(i)] == kPoison);
      REQUIRE(lse[static_cast<size_t>(i)] == kUnset && lse[lse.size() - 1 - static_cast<size_t>(i)] == kUnset);
    }
  }

  // Every block of `rows` queries under this schedule, by run_block(block, tiles).
  template <typename RunBlock>
  void run(emulation::Schedule schedule, int rows, RunBlock run_block) {
    emulation::Block& machine = emulation::block();
    machine.schedule = schedule;
    machine.memory.clear();
    hold(machine.memory, packed.data(), 2 * packed.size(), false);
    for (Tensor<Value>* x : {&q, &rotated_k}) hold(machine.memory, x->bits.data(), 2 * x->bits.size(), false);
    for (auto* table : {&query_cos, &query_sin}) hold(machine.memory, table->data(), 4 * table->size(), false);
    hold(machine.memory, call.out.data, 2 * (out.size() - 2 * kGuard), true);
    const int tiles = static_cast<int>(tiles_of(call, rows));
    for (int64_t block = 0; block < blocks_of(call, rows); ++block) run_block(block, tiles);
  }

  // Right under the first schedule, and the same bits under all: no result depends on the order of threads, nor on when copies arrive or
  // products end.
  template <typename RunBlock>
  void check_under(std::initializer_list<emulation::Schedule> schedules, int rows, RunBlock run_block) {
    std::vector<uint16_t> first;
    for (const emulation::Schedule& schedule : schedules) {
      std::fill(out.begin(), out.end(), kPoison);
      std::fill(lse.begin(), lse.end(), kUnset);
      run(schedule, rows, run_block);
      if (first.empty()) check();
      if (first.empty()) first = out;
      REQUIRE(out == first);
    }
  }
};

}  // namespace
