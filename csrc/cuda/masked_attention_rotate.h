// Rotation of queries and keys by tables of cosines and sines, eight channels at a time; the pass over the keys.
#pragma once

#include <cstdint>

#include "device_source.h"
#include "masked_attention_layout.h"

namespace jepa {
namespace {

// The tables' values for eight channels.
struct Rotation {
  Chunk cos[2], sin[2];
};
template <typename Machine>
JEPA_DEVICE Rotation load_rotation(const RotationTables& tables, int64_t place) {
  Rotation r;
  JEPA_UNROLL
  for (int half = 0; half < 2; ++half) {
    r.cos[half] = Machine::load_16(tables.cos + place + 4 * half);
    r.sin[half] = Machine::load_16(tables.sin + place + 4 * half);
  }
  return r;
}

// Rotates eight channels in float32 and rounds them once.
template <typename Machine, typename Value>
JEPA_DEVICE Chunk rotated(const Chunk& x, const Rotation& r) {
  Chunk result;
  JEPA_UNROLL
  for (int pair = 0; pair < 4; ++pair) {
    const auto value = Machine::template values<Value>(x.word[pair]);
    const uint32_t *const cos = r.cos[pair / 2].word + 2 * (pair % 2), *const sin = r.sin[pair / 2].word + 2 * (pair % 2);
    const float even = value.x * bits_float(cos[0]) + value.y * bits_float(sin[0]);
    const float odd = value.y * bits_float(cos[1]) + value.x * bits_float(sin[1]);
    result.word[pair] = Machine::template pair<Value>(even, odd);
  }
  return result;
}

// One chunk of the keys, in as many heads as a thread takes, so that a row of the tables is read once for them.
constexpr int kHeadsPerThread = 4;
inline int64_t rotate_items(const RotateKeysCall& call) {
  const int64_t groups = (call.heads + kHeadsPerThread - 1) / kHeadsPerThread;
  return call.batch * groups * call.key_len * (call.head_dim / kChunk);
}

template <typename Machine, typename Value>
JEPA_DEVICE void rotate_key_chunk(const RotateKeysCall& call, int64_t item) {
  const int chunks = call.head_dim / kChunk, groups = (call.heads + kHeadsPerThread - 1) / kHeadsPerThread;
  const int chunk = static_cast<int>(item % chunks);
  const int64_t row_item = item / chunks;
  const int row = static_cast<int>(row_item % call.key_len);
  const int64_t group_item = row_item / call.key_len;
  const int head = static_cast<int>(group_item % groups) * kHeadsPerThread;
  const int64_t batch = group_item / groups;
  if (batch >= call.batch) return;
  const int64_t place = batch * call.tables.batch_stride + static_cast<int64_t>(row) * call.head_dim + chunk * kChunk;
  const auto at = [&](const HeadRows& rows, int h) {
    return static_cast<uint16_t*>(rows.data) + batch * rows.batch_stride + h * rows.head_stride + row * rows.row_stride +
           chunk * kChunk;
  };
  const Rotation rotation = load_rotation<Machine>(call.tables, place);
  Chunk keys[kHeadsPerThread];  // all loads under way before the first is waited for
  JEPA_UNROLL
  for (int i = 0; i < kHeadsPerThread; ++i) keys[i] = head + i < call.heads ? Machine::load_16(at(call.keys, head + i)) : Chunk{};
  JEPA_UNROLL
  for (int i = 0; i < kHeadsPerThread; ++i)
    if (head + i < call.heads) Machine::store_16(at(call.out, head + i), rotated<Machine, Value>(keys[i], rotation));
}

}  // namespace
}  // namespace jepa
