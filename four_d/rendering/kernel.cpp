// Blending of ellipses front to back on CPU cores: which tile needs which, forward, and backward.
//
// Tiles are SIDE x SIDE pixels. A tile's rows are the vector lanes: all inner loops run over SIDE neighbouring pixels
// without branches. Threads take whole tiles; what a tile adds to a Gaussian's gradient has a slot of its own, and the
// slots are summed in order, so results do not depend on the number of threads. No torch here: plain C arrays.
//
// Projection is `projection.py` written out, with its derivative; that file says what the numbers mean.
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
constexpr double NEAR = 0.01;
constexpr double BLUR = 0.3;
constexpr double BESIDE = 0.3;
constexpr int64_t BLOCK = 2048;  // Gaussians that a thread takes at a time
constexpr int REVIEW = 16;  // Gaussians after which a tile looks which of its rows are still lit

struct Grid {
  int64_t images, gaussians, rows, columns, height, width;
  int64_t tiles() const { return images * rows * columns; }
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

template <typename T>
inline void cross(const T* a, const T* b, T* out) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

template <typename T>
inline T dot(const T* a, const T* b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

// All that projecting one Gaussian computes on the way, so that the derivative can take it from there.
template <typename T>
struct Projected {
  const T* view;        // camera_from_world, 4 x 4
  T focal[2], middle[2];
  T at[3];              // the mean in the camera's coordinates
  T unit[4], length;    // the quaternion of length 1, and the length it had
  T turn[3][3];         // its rotation
  T half[3][3];         // columns: half axes in the world
  T axes[3][3];         // columns: half axes in the camera's coordinates
  T ratio[2];           // x/z and y/z, no farther than BESIDE
  bool beside[2];
  T slope[2][3];        // how x and y of the image change along the half axes
  T area[3], xx, xy, yy, determinant;
  bool drawn;

  Projected(const Grid& grid, const T* camera, const T* intrinsics, const T* mean, const T* quat, const T* scale,
            T opacity)
      : view(camera) {
    focal[0] = intrinsics[0], focal[1] = intrinsics[4], middle[0] = intrinsics[2], middle[1] = intrinsics[5];
    for (int r = 0; r < 3; ++r) at[r] = dot(view + 4 * r, mean) + view[4 * r + 3];
    drawn = at[2] > T(NEAR) && opacity >= T(FAINTEST);
    if (!drawn) return;
    rotate(quat);
    for (int r = 0; r < 3; ++r)
      for (int c = 0; c < 3; ++c) half[r][c] = turn[r][c] * scale[c];
    for (int r = 0; r < 3; ++r)
      for (int c = 0; c < 3; ++c)
        axes[r][c] = view[4 * r] * half[0][c] + view[4 * r + 1] * half[1][c] + view[4 * r + 2] * half[2][c];
    const T pixels[2] = {T(grid.width), T(grid.height)};
    for (int k = 0; k < 2; ++k) {
      const T margin = T(BESIDE * 0.5) * pixels[k] / focal[k], free = at[k] / at[2];
      ratio[k] = std::min(std::max(free, -middle[k] / focal[k] - margin), (pixels[k] - middle[k]) / focal[k] + margin);
      beside[k] = ratio[k] != free;
      for (int c = 0; c < 3; ++c) slope[k][c] = focal[k] / at[2] * (axes[k][c] - ratio[k] * axes[2][c]);
    }
    cross(slope[0], slope[1], area);
    xx = dot(slope[0], slope[0]), xy = dot(slope[0], slope[1]), yy = dot(slope[1], slope[1]);
    determinant = dot(area, area) + T(BLUR) * (xx + yy) + T(BLUR * BLUR);
  }

  void rotate(const T* quat) {
    length = std::sqrt(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3]);
    for (int k = 0; k < 4; ++k) unit[k] = quat[k] / std::max(length, T(1e-12));
    const T w = unit[0], x = unit[1], y = unit[2], z = unit[3];
    turn[0][0] = 1 - 2 * (y * y + z * z), turn[0][1] = 2 * (x * y - w * z), turn[0][2] = 2 * (x * z + w * y);
    turn[1][0] = 2 * (x * y + w * z), turn[1][1] = 1 - 2 * (x * x + z * z), turn[1][2] = 2 * (y * z - w * x);
    turn[2][0] = 2 * (x * z - w * y), turn[2][1] = 2 * (y * z + w * x), turn[2][2] = 1 - 2 * (x * x + y * y);
  }

  void write(const Grid& grid, T opacity, T* p, T* depth, int32_t* box) const {
    *depth = drawn ? at[2] : T(1);
    std::fill_n(p, PARAMETERS, T(0));
    box[0] = box[2] = 1, box[1] = box[3] = 0;
    if (!drawn) return;
    p[2] = (yy + T(BLUR)) / determinant, p[3] = -xy / determinant, p[4] = (xx + T(BLUR)) / determinant;
    p[5] = std::log(opacity);
    const T limit = 2 * std::max(T(0), p[5] - T(std::log(FAINTEST)));
    const T variance[2] = {xx + T(BLUR), yy + T(BLUR)};
    const int64_t pixels[2] = {grid.width, grid.height};
    for (int k = 0; k < 2; ++k) {
      p[k] = focal[k] * at[k] / at[2] + middle[k];
      const T reach = std::sqrt(limit * variance[k]), last = T(pixels[k] - 1);
      const T from = std::min(std::max(std::ceil(p[k] - T(0.5) - reach), T(0)), last + 1);
      const T to = std::max(std::min(std::floor(p[k] - T(0.5) + reach), last), T(-1));
      box[2 * k] = from <= to ? int32_t(from) / SIDE : 1;
      box[2 * k + 1] = from <= to ? int32_t(to) / SIDE : 0;
    }
  }

  // Adds what this Gaussian gives the camera to to_view (rows of rotation and translation, 3 x 4).
  void backward(const T* p, const T* mean, const T* scale, T opacity, const T* to_p, T to_depth, T* to_mean, T* to_quat,
                T* to_scale, T* to_opacity, T* to_view) const {
    if (!drawn) return;
    T to_slope[2][3], to_axes[3][3] = {}, to_at[3] = {0, 0, to_depth};
    slopes_backward(p, to_p, to_slope);
    for (int k = 0; k < 2; ++k) {
      const T scaled = focal[k] / at[2];
      for (int c = 0; c < 3; ++c) {
        to_axes[k][c] += scaled * to_slope[k][c];
        to_axes[2][c] -= scaled * ratio[k] * to_slope[k][c];
      }
      const T to_ratio = beside[k] ? T(0) : -scaled * dot(to_slope[k], axes[2]);
      to_at[k] += to_ratio / at[2] + to_p[k] * scaled;
      to_at[2] -= dot(to_slope[k], slope[k]) / at[2] + (to_ratio + to_p[k] * focal[k]) * at[k] / (at[2] * at[2]);
    }
    T to_turn[3][3];
    for (int c = 0; c < 3; ++c) {
      to_mean[c] = view[c] * to_at[0] + view[4 + c] * to_at[1] + view[8 + c] * to_at[2];
      to_scale[c] = 0;
      for (int r = 0; r < 3; ++r) {
        const T to_half = view[r] * to_axes[0][c] + view[4 + r] * to_axes[1][c] + view[8 + r] * to_axes[2][c];
        to_scale[c] += to_half * turn[r][c];
        to_turn[r][c] = to_half * scale[c];
      }
    }
    for (int r = 0; r < 3; ++r) {
      for (int c = 0; c < 3; ++c) to_view[4 * r + c] += to_at[r] * mean[c] + dot(to_axes[r], half[c]);
      to_view[4 * r + 3] += to_at[r];
    }
    turn_backward(to_turn, to_quat);
    *to_opacity = to_p[5] / opacity;
  }

  void slopes_backward(const T* p, const T* to_p, T (*to_slope)[3]) const {
    const T to_determinant = -(to_p[2] * p[2] + to_p[3] * p[3] + to_p[4] * p[4]) / determinant;
    const T to_xx = to_p[4] / determinant + T(BLUR) * to_determinant;
    const T to_yy = to_p[2] / determinant + T(BLUR) * to_determinant;
    const T to_xy = -to_p[3] / determinant;
    T by_x[3], by_y[3];
    cross(slope[1], area, by_x);
    cross(area, slope[0], by_y);
    for (int c = 0; c < 3; ++c) {
      to_slope[0][c] = 2 * (to_xx * slope[0][c] + to_determinant * by_x[c]) + to_xy * slope[1][c];
      to_slope[1][c] = 2 * (to_yy * slope[1][c] + to_determinant * by_y[c]) + to_xy * slope[0][c];
    }
  }

  void turn_backward(const T (*g)[3], T* to_quat) const {
    const T w = unit[0], x = unit[1], y = unit[2], z = unit[3];
    const T to_unit[4] = {
        2 * (x * (g[2][1] - g[1][2]) + y * (g[0][2] - g[2][0]) + z * (g[1][0] - g[0][1])),
        2 * (y * (g[0][1] + g[1][0]) + z * (g[0][2] + g[2][0]) + w * (g[2][1] - g[1][2]) - 2 * x * (g[1][1] + g[2][2])),
        2 * (x * (g[0][1] + g[1][0]) + z * (g[1][2] + g[2][1]) + w * (g[0][2] - g[2][0]) - 2 * y * (g[0][0] + g[2][2])),
        2 * (x * (g[0][2] + g[2][0]) + y * (g[1][2] + g[2][1]) + w * (g[1][0] - g[0][1]) - 2 * z * (g[0][0] + g[1][1])),
    };
    const T along = w * to_unit[0] + x * to_unit[1] + y * to_unit[2] + z * to_unit[3];
    for (int k = 0; k < 4; ++k) to_quat[k] = length > T(1e-12) ? (to_unit[k] - along * unit[k]) / length : T(0);
  }
};

template <typename T>
struct Inputs {
  const T *means, *quats, *scales, *opacities, *views, *intrinsics;

  Projected<T> project(const Grid& grid, int64_t m) const {
    const int64_t image = m / grid.gaussians;
    return {grid, views + 16 * image, intrinsics + 9 * image, means + 3 * m, quats + 4 * m, scales + 3 * m,
            opacities[m]};
  }
};

template <typename T>
void project(const Grid& grid, const Inputs<T>& in, T* parameters, T* depths, int32_t* boxes, int threads) {
  const int64_t all = grid.images * grid.gaussians;
  in_parallel((all + BLOCK - 1) / BLOCK, threads, [&](int64_t block) {
    for (int64_t m = block * BLOCK; m < std::min(all, (block + 1) * BLOCK); ++m)
      in.project(grid, m).write(grid, in.opacities[m], parameters + PARAMETERS * m, depths + m, boxes + 4 * m);
  });
}

// The gradients come in as zeros. Each block's part of its camera is kept apart and added in order.
template <typename T>
void project_backward(const Grid& grid, const Inputs<T>& in, const T* parameters, const T* to_parameters,
                      const T* to_depths, T* to_means, T* to_quats, T* to_scales, T* to_opacities, T* to_views,
                      int threads) {
  const int64_t blocks = (grid.gaussians + BLOCK - 1) / BLOCK;
  std::vector<T> partial(12 * blocks * grid.images, T(0));
  in_parallel(blocks * grid.images, threads, [&](int64_t block) {
    const int64_t first = block / blocks * grid.gaussians, from = block % blocks * BLOCK;
    for (int64_t m = first + from; m < first + std::min(grid.gaussians, from + BLOCK); ++m)
      in.project(grid, m).backward(parameters + PARAMETERS * m, in.means + 3 * m, in.scales + 3 * m, in.opacities[m],
                                   to_parameters + PARAMETERS * m, to_depths[m], to_means + 3 * m, to_quats + 4 * m,
                                   to_scales + 3 * m, to_opacities + m, partial.data() + 12 * block);
  });
  for (int64_t block = 0; block < blocks * grid.images; ++block)
    for (int k = 0; k < 12; ++k) to_views[block / blocks * 16 + k] += partial[12 * block + k];
}

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
  in_parallel(grid.images, threads, [&](int64_t image) {
    int64_t* tiles = per_tile + image * grid.rows * grid.columns;
    for (int64_t m = image * grid.gaussians; m < (image + 1) * grid.gaussians; ++m)
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
  in_parallel(grid.images, threads, [&](int64_t image) {
    const int64_t tiles = grid.rows * grid.columns;
    std::vector<int64_t> next(tile_starts + image * tiles, tile_starts + (image + 1) * tiles);
    for (int64_t rank = 0; rank < grid.gaussians; ++rank) {
      const int64_t m = image * grid.gaussians + order[image * grid.gaussians + rank];
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
  int64_t image, x, y, high, wide;  // the first pixel, and how many rows and columns are inside the image
  alignas(64) T light[SIDE][SIDE];
  bool lit[SIDE];

  Tile(const Grid& grid, int64_t index) {
    image = index / (grid.rows * grid.columns);
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
                  out + ((tile.image * channels + k) * grid.height + tile.y + r) * grid.width + tile.x);
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
      const int64_t at = ((tile.image * channels + k) * grid.height + tile.y + r) * grid.width + tile.x;
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

// grid: images, Gaussians of each, tile rows, tile columns, height, width.
#define FOR_TYPE(NAME, T)                                                                                              \
  API void project_##NAME(const int64_t* g, const T* means, const T* quats, const T* scales, const T* opacities,         \
                          const T* views, const T* intrinsics, T* parameters, T* depths, int32_t* boxes,               \
                          int threads) {                                                                               \
    project<T>({g[0], g[1], g[2], g[3], g[4], g[5]}, {means, quats, scales, opacities, views, intrinsics}, parameters, \
               depths, boxes, threads);                                                                                \
  }                                                                                                                    \
  API void project_backward_##NAME(const int64_t* g, const T* means, const T* quats, const T* scales,                  \
                                   const T* opacities, const T* views, const T* intrinsics, const T* parameters,       \
                                   const T* to_parameters, const T* to_depths, T* to_means, T* to_quats, T* to_scales, \
                                   T* to_opacities, T* to_views, int threads) {                                        \
    project_backward<T>({g[0], g[1], g[2], g[3], g[4], g[5]}, {means, quats, scales, opacities, views, intrinsics},    \
                        parameters, to_parameters, to_depths, to_means, to_quats, to_scales, to_opacities, to_views,   \
                        threads);                                                                                      \
  }                                                                                                                    \
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
