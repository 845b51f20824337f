// Blending of ellipses front to back on CPU cores: which tile needs which, forward, and backward.
//
// Tiles are SIDE x SIDE pixels. A tile's rows are the vector lanes: all inner loops run over SIDE neighbouring pixels
// without branches. Threads take whole tiles; what a tile adds to a Gaussian's gradient has a slot of its own, and the
// slots are summed in order, so results do not depend on the number of threads. No torch here: plain C arrays.
//
// parameters: per Gaussian x, y (pixels), the inverse covariance's xx, xy, yy, and log(opacity).
// boxes: per Gaussian first and last tile column, first and last tile row; last < first where it is not drawn.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(_WIN32)
#define API extern "C" __declspec(dllexport)
#else
#define API extern "C" __attribute__((visibility("default")))
#endif

namespace {

constexpr int SIDE = 16;
constexpr int PARAMETERS = 6;
constexpr double OPAQUE = 0.999;
constexpr double DARK = 1e-4;
constexpr double FAINTEST = 1.0 / 255.0;
constexpr int REVIEW = 16;  // Gaussians after which a tile looks which of its rows are still lit

struct Grid {
  int64_t pictures, gaussians, rows, columns, height, width;
  int64_t tiles() const { return pictures * rows * columns; }
};

template <typename Work>
void in_parallel(int64_t count, int threads, const Work& work) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t i = next++; i < count; i = next++) work(i);
  };
  std::vector<std::thread> others;
  for (int64_t t = 1; t < std::min<int64_t>(threads, count); ++t) others.emplace_back(run);
  run();
  for (auto& other : others) other.join();
}

// exp of numbers at most about 0, to 2 units in the last place; below -20 it is exp(-20), far fainter than counts
inline float exponential(float x) {
  constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float y = std::max(x, -20.0f) * 1.44269504f;
  const float shifted = y + SHIFT;
  const float f = y - (shifted - SHIFT);
  float p = 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  int32_t power, bits;
  std::memcpy(&power, &shifted, 4);
  std::memcpy(&bits, &p, 4);
  bits += power << 23;
  std::memcpy(&p, &bits, 4);
  return p;
}

inline double exponential(double x) { return std::exp(x); }

// The least sigma on a horizontal or vertical stretch: u is fixed, v goes from low to high.
template <typename T>
T least_on_edge(T uu, T uv, T vv, T u, T low, T high) {
  const T v = std::min(std::max(-uv * u / vv, low), high);
  return T(0.5) * (uu * u * u + vv * v * v) + uv * u * v;
}

// Whether alpha reaches FAINTEST anywhere between the tile's outermost pixel centres.
template <typename T>
bool reaches(const T* p, int64_t column, int64_t row) {
  const T left = T(column * SIDE) + T(0.5) - p[0], right = left + (SIDE - 1);
  const T top = T(row * SIDE) + T(0.5) - p[1], bottom = top + (SIDE - 1);
  const bool beside = left > 0 || right < 0, above = top > 0 || bottom < 0;
  if (!beside && !above) return true;
  T least = T(1e30);
  if (beside) least = std::min(least, least_on_edge(p[2], p[3], p[4], left > 0 ? left : right, top, bottom));
  if (above) least = std::min(least, least_on_edge(p[4], p[3], p[2], top > 0 ? top : bottom, left, right));
  const T limit = p[5] - T(std::log(FAINTEST));
  return least <= limit * T(1.001) + T(1e-3);
}

template <typename T, typename Visit>
void each_tile(const T* parameters, const int32_t* boxes, int64_t member, const Visit& visit) {
  const int32_t* box = boxes + 4 * member;
  const T* p = parameters + PARAMETERS * member;
  for (int64_t row = box[2]; row <= box[3]; ++row)
    for (int64_t column = box[0]; column <= box[1]; ++column)
      if (reaches(p, column, row)) visit(row, column);
}

// per_tile[tile] and per_member[member]: how many pairs each has.
template <typename T>
void count(const Grid& grid, const T* parameters, const int32_t* boxes, int64_t* per_tile, int64_t* per_member,
           int threads) {
  in_parallel(grid.pictures, threads, [&](int64_t picture) {
    int64_t* tiles = per_tile + picture * grid.rows * grid.columns;
    for (int64_t m = picture * grid.gaussians; m < (picture + 1) * grid.gaussians; ++m)
      each_tile(parameters, boxes, m, [&](int64_t row, int64_t column) {
        ++tiles[row * grid.columns + column];
        ++per_member[m];
      });
  });
}

// members: every tile's Gaussians, nearest first. slots: where in `members` each Gaussian's own pairs are.
template <typename T>
void fill(const Grid& grid, const T* parameters, const int32_t* boxes, const int64_t* order, const int64_t* tile_starts,
          const int64_t* member_starts, int32_t* members, int64_t* slots, int threads) {
  in_parallel(grid.pictures, threads, [&](int64_t picture) {
    const int64_t tiles = grid.rows * grid.columns;
    std::vector<int64_t> next(tile_starts + picture * tiles, tile_starts + (picture + 1) * tiles);
    for (int64_t rank = 0; rank < grid.gaussians; ++rank) {
      const int64_t m = picture * grid.gaussians + order[picture * grid.gaussians + rank];
      int64_t* slot = slots + member_starts[m];
      each_tile(parameters, boxes, m, [&](int64_t row, int64_t column) {
        const int64_t at = next[row * grid.columns + column]++;
        members[at] = static_cast<int32_t>(m);
        *slot++ = at;
      });
    }
  });
}

template <typename T>
struct Tile {
  int64_t picture, x, y, high, wide;  // the first pixel, and how many rows and columns are inside the picture
  alignas(64) T light[SIDE][SIDE];
  bool lit[SIDE];

  Tile(const Grid& grid, int64_t index) {
    picture = index / (grid.rows * grid.columns);
    y = index / grid.columns % grid.rows * SIDE;
    x = index % grid.columns * SIDE;
    high = std::min<int64_t>(SIDE, grid.height - y);
    wide = std::min<int64_t>(SIDE, grid.width - x);
    for (int r = 0; r < SIDE; ++r)
      for (int c = 0; c < SIDE; ++c) light[r][c] = r < high && c < wide ? T(1) : T(0);
    review();
  }

  bool review() {
    bool any = false;
    for (int r = 0; r < SIDE; ++r) {
      T most = 0;
      for (int c = 0; c < SIDE; ++c) most = std::max(most, light[r][c]);
      lit[r] = most > 0;
      any |= lit[r];
    }
    return any;
  }

  // Rows that an ellipse can reach, with half a pixel of slack.
  void rows_of(const T* p, int& first, int& last) const {
    const T limit = std::max(T(0), p[5] - T(std::log(FAINTEST)));
    const T determinant = p[2] * p[4] - p[3] * p[3];
    const T reach = determinant > 0 ? std::sqrt(2 * limit * p[2] / determinant) : T(1e6);
    const T middle = p[1] - T(y) - T(0.5);
    first = static_cast<int>(std::min(std::max(std::ceil(middle - reach - T(0.5)), T(0)), T(SIDE)));
    last = static_cast<int>(std::max(std::min(std::floor(middle + reach + T(0.5)), T(high - 1)), T(-1)));
  }
};

// One row of a tile: alphas, weights and the light that goes on; `light` is 0 where it has become dark.
template <typename T>
inline void shade(const T* p, T dy, T x, T* light, T* alphas, T* arriving, T* weights) {
  const T constant = p[5] - T(0.5) * p[4] * dy * dy, linear = p[3] * dy, square = T(0.5) * p[2];
  for (int c = 0; c < SIDE; ++c) {
    const T dx = x + c;
    const T alpha = std::min(exponential(constant - (square * dx + linear) * dx), T(OPAQUE));
    const T counted = alpha >= T(FAINTEST) ? alpha : T(0);
    const T through = light[c] * (1 - counted);
    const T enters = through > T(DARK) ? light[c] : T(0);
    alphas[c] = counted;
    arriving[c] = enters;
    weights[c] = counted * enters;
    light[c] = through > T(DARK) ? through : T(0);
  }
}

// CHANNELS is 0 where the number is known only at run time.
template <typename T, int CHANNELS>
void blend_tile(const Grid& grid, int64_t index, const T* parameters, const T* values, int64_t channels,
                const int64_t* starts, const int32_t* members, T* out) {
  if (CHANNELS) channels = CHANNELS;
  Tile<T> tile(grid, index);
  std::vector<T> sums(channels * SIDE * SIDE, T(0));
  alignas(64) T alphas[SIDE], arriving[SIDE], weights[SIDE];
  for (int64_t i = starts[index]; i < starts[index + 1]; ++i) {
    if ((i - starts[index]) % REVIEW == REVIEW - 1 && !tile.review()) break;
    const T* p = parameters + PARAMETERS * int64_t(members[i]);
    const T* value = values + channels * int64_t(members[i]);
    int first, last;
    tile.rows_of(p, first, last);
    for (int r = first; r <= last; ++r) {
      if (!tile.lit[r]) continue;
      shade(p, T(tile.y + r) + T(0.5) - p[1], T(tile.x) + T(0.5) - p[0], tile.light[r], alphas, arriving, weights);
      for (int64_t k = 0; k < channels; ++k) {
        T* sum = sums.data() + (r * channels + k) * SIDE;
        for (int c = 0; c < SIDE; ++c) sum[c] += weights[c] * value[k];
      }
    }
  }
  for (int64_t k = 0; k < channels; ++k)
    for (int64_t r = 0; r < tile.high; ++r)
      std::copy_n(sums.data() + (r * channels + k) * SIDE, tile.wide,
                  out + ((tile.picture * channels + k) * grid.height + tile.y + r) * grid.width + tile.x);
}

template <typename T, int CHANNELS>
void blend_tile_backward(const Grid& grid, int64_t index, const T* parameters, const T* values, int64_t channels,
                         const int64_t* starts, const int32_t* members, const T* out, const T* to_out, T* to_pairs) {
  if (CHANNELS) channels = CHANNELS;
  Tile<T> tile(grid, index);
  std::vector<T> gradient(channels * SIDE * SIDE, T(0));
  alignas(64) T behind[SIDE][SIDE] = {};
  for (int64_t k = 0; k < channels; ++k)
    for (int64_t r = 0; r < tile.high; ++r) {
      const int64_t at = ((tile.picture * channels + k) * grid.height + tile.y + r) * grid.width + tile.x;
      for (int64_t c = 0; c < tile.wide; ++c) {
        gradient[(r * channels + k) * SIDE + c] = to_out[at + c];
        behind[r][c] += to_out[at + c] * out[at + c];
      }
    }
  std::vector<T> to_values(channels * SIDE);
  alignas(64) T alphas[SIDE], arriving[SIDE], weights[SIDE], worth[SIDE];
  alignas(64) T moments[PARAMETERS][SIDE];
  for (int64_t i = starts[index]; i < starts[index + 1]; ++i) {
    if ((i - starts[index]) % REVIEW == REVIEW - 1 && !tile.review()) break;
    const T* p = parameters + PARAMETERS * int64_t(members[i]);
    const T* value = values + channels * int64_t(members[i]);
    std::memset(moments, 0, sizeof(moments));
    std::fill(to_values.begin(), to_values.end(), T(0));
    int first, last;
    tile.rows_of(p, first, last);
    const T x = T(tile.x) + T(0.5) - p[0];
    for (int r = first; r <= last; ++r) {
      if (!tile.lit[r]) continue;
      const T dy = T(tile.y + r) + T(0.5) - p[1];
      shade(p, dy, x, tile.light[r], alphas, arriving, weights);
      for (int c = 0; c < SIDE; ++c) worth[c] = 0;
      for (int64_t k = 0; k < channels; ++k) {
        const T* g = gradient.data() + (r * channels + k) * SIDE;
        T* to_value = to_values.data() + k * SIDE;
        for (int c = 0; c < SIDE; ++c) {
          worth[c] += g[c] * value[k];
          to_value[c] += g[c] * weights[c];
        }
      }
      for (int c = 0; c < SIDE; ++c) {
        behind[r][c] -= weights[c] * worth[c];
        const T slope = (arriving[c] * worth[c] - behind[r][c] / (1 - alphas[c])) * alphas[c];
        const T s = arriving[c] > 0 && alphas[c] < T(OPAQUE) ? slope : T(0);
        const T dx = x + c;
        moments[0][c] += s;
        moments[1][c] += s * dx;
        moments[2][c] += s * dy;
        moments[3][c] += s * dx * dx;
        moments[4][c] += s * dx * dy;
        moments[5][c] += s * dy * dy;
      }
    }
    T m[PARAMETERS] = {};
    for (int k = 0; k < PARAMETERS; ++k)
      for (int c = 0; c < SIDE; ++c) m[k] += moments[k][c];
    T* to = to_pairs + (PARAMETERS + channels) * i;
    to[0] = p[2] * m[1] + p[3] * m[2];
    to[1] = p[3] * m[1] + p[4] * m[2];
    to[2] = T(-0.5) * m[3];
    to[3] = -m[4];
    to[4] = T(-0.5) * m[5];
    to[5] = m[0];
    for (int64_t k = 0; k < channels; ++k) {
      T sum = 0;
      for (int c = 0; c < SIDE; ++c) sum += to_values[k * SIDE + c];
      to[PARAMETERS + k] = sum;
    }
  }
}

template <typename T>
void gather(int64_t all, int64_t width, const int64_t* member_starts, const int64_t* slots, const T* to_pairs, T* to,
            int threads) {
  constexpr int64_t BLOCK = 4096;
  in_parallel((all + BLOCK - 1) / BLOCK, threads, [&](int64_t block) {
    for (int64_t m = block * BLOCK; m < std::min(all, (block + 1) * BLOCK); ++m)
      for (int64_t i = member_starts[m]; i < member_starts[m + 1]; ++i)
        for (int64_t k = 0; k < width; ++k) to[m * width + k] += to_pairs[slots[i] * width + k];
  });
}

template <typename T>
void blend(const Grid& grid, const T* parameters, const T* values, int64_t channels, const int64_t* starts,
           const int32_t* members, T* out, int threads) {
  auto tile = channels == 5 ? blend_tile<T, 5> : blend_tile<T, 0>;
  in_parallel(grid.tiles(), threads,
              [&](int64_t i) { tile(grid, i, parameters, values, channels, starts, members, out); });
}

template <typename T>
void blend_backward(const Grid& grid, const T* parameters, const T* values, int64_t channels, const int64_t* starts,
                    const int32_t* members, const T* out, const T* to_out, T* to_pairs, int threads) {
  auto tile = channels == 5 ? blend_tile_backward<T, 5> : blend_tile_backward<T, 0>;
  in_parallel(grid.tiles(), threads, [&](int64_t i) {
    tile(grid, i, parameters, values, channels, starts, members, out, to_out, to_pairs);
  });
}

}  // namespace

// grid: pictures, Gaussians of each, tile rows, tile columns, height, width.
#define FOR_TYPE(NAME, T)                                                                                              \
  API void count_##NAME(const int64_t* g, const T* parameters, const int32_t* boxes, int64_t* per_tile,                \
                        int64_t* per_member, int threads) {                                                            \
    count<T>({g[0], g[1], g[2], g[3], g[4], g[5]}, parameters, boxes, per_tile, per_member, threads);                  \
  }                                                                                                                    \
  API void fill_##NAME(const int64_t* g, const T* parameters, const int32_t* boxes, const int64_t* order,              \
                       const int64_t* tile_starts, const int64_t* member_starts, int32_t* members, int64_t* slots,     \
                       int threads) {                                                                                  \
    fill<T>({g[0], g[1], g[2], g[3], g[4], g[5]}, parameters, boxes, order, tile_starts, member_starts, members,       \
            slots, threads);                                                                                           \
  }                                                                                                                    \
  API void blend_##NAME(const int64_t* g, const T* parameters, const T* values, int64_t channels,                      \
                        const int64_t* tile_starts, const int32_t* members, T* out, int threads) {                     \
    blend<T>({g[0], g[1], g[2], g[3], g[4], g[5]}, parameters, values, channels, tile_starts, members, out, threads);  \
  }                                                                                                                    \
  API void blend_backward_##NAME(const int64_t* g, const T* parameters, const T* values, int64_t channels,             \
                                 const int64_t* tile_starts, const int32_t* members, const int64_t* member_starts,     \
                                 const int64_t* slots, const T* out, const T* to_out, T* to_pairs, T* to,              \
                                 int threads) {                                                                        \
    blend_backward<T>({g[0], g[1], g[2], g[3], g[4], g[5]}, parameters, values, channels, tile_starts, members, out,   \
                      to_out, to_pairs, threads);                                                                      \
    gather<T>(g[0] * g[1], PARAMETERS + channels, member_starts, slots, to_pairs, to, threads);                        \
  }

FOR_TYPE(float, float)
FOR_TYPE(double, double)
