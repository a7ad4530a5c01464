// Products of states with a matrix of weights, norms, and attention, for passes of a few dozen states.
//
// Weights come out of memory about as fast as a few dozen states are multiplied with them, so that neither may wait for
// the other: while one part of the weights is multiplied, the next is fetched, a line at a time. Only vector types of
// the compiler are used, no instructions of one processor.

#include <cstdint>
#include <cstring>
#include <omp.h>
#include <utility>

namespace {

// What fits into the registers of a processor: the products of `kRows` states with `kColumns` rows of weights.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 14;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kLanes = 8, kRows = 6;
#else
constexpr int kLanes = 4, kRows = 6;
#endif
constexpr int kVectors = 2, kColumns = kLanes * kVectors;
// Blocks of `kRows` states that stay in the second cache while all weights pass by.
constexpr int64_t kBlocks = 16;
constexpr int64_t kLine = 64;
// Keys that are laid out at a time, about.
constexpr int64_t kLaidOut = 1 << 20;
// Numbers of which so many take longer than to wake other threads.
constexpr int64_t kWorthThreads = 1 << 15;
constexpr float kLog2E = 1.44269504088896f;

// Anywhere among other numbers.
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

struct Tile {
    Vector sum[kRows][kVectors];
};

inline Vector loaded(const float* place) { return *reinterpret_cast<const Vector*>(place); }

inline void store(float* place, Vector found) { *reinterpret_cast<Vector*>(place) = found; }

// 2^x, good to some 2e-7 of it. From x = 127.5 on it is infinite, and below -126 it is that of -126; what is not a
// number stays.
inline Vector power_of_two(Vector x) {
    // Adding a number of which the last digit is worth 1 rounds to whole numbers.
    constexpr float rounding = 12582912.0f;
    const Vector least = Vector{} - 126.0f, most = Vector{} + 128.0f;
    x = x < least ? least : x;
    x = x > most ? most : x;
    const Vector whole = (x + rounding) - rounding;
    const Vector z = (x - whole) * 0.693147180559945f;
    Vector series = Vector{} + 1.0f / 720;
    series = series * z + 1.0f / 120;
    series = series * z + 1.0f / 24;
    series = series * z + 1.0f / 6;
    series = series * z + 0.5f;
    series = series * z + 1.0f;
    series = series * z + 1.0f;
    const Integers exponent = __builtin_convertvector(whole, Integers) + 127;
    const Integers bits = exponent << 23;
    Vector scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return series * scale;
}

// The products of `rows` states, feature by feature next to each other, with the rows of one panel, of which features
// are `stride` apart. Meanwhile fetches what is `ahead`, `step` bytes a feature.
template <int rows>
void multiply(const float* __restrict states, const float* __restrict panel, int64_t stride, int64_t width, Tile& tile,
              const char* __restrict ahead, int64_t step) {
    // Unrolled early, so that all of this stays in registers.
    Vector sum[rows][kVectors] = {};
    for (int64_t feature = 0; feature < width; ++feature) {
        Vector weights[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) weights[v] = loaded(panel + feature * stride + v * kLanes);
        __builtin_prefetch(ahead, 0, 2);
        if (step > kLine) __builtin_prefetch(ahead + kLine, 0, 2);
        ahead += step;
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row)
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) sum[row][v] += weights[v] * states[feature * rows + row];
    }
#pragma GCC unroll 16
    for (int row = 0; row < rows; ++row)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) tile.sum[row][v] = sum[row][v];
}

using Multiply = void (*)(const float*, const float*, int64_t, int64_t, Tile&, const char*, int64_t);

template <int... index>
constexpr Multiply function_for(int64_t rows, std::integer_sequence<int, index...>) {
    constexpr Multiply functions[] = {multiply<index + 1>...};
    return functions[rows - 1];
}

constexpr Multiply multiply_rows(int64_t rows) { return function_for(rows, std::make_integer_sequence<int, kRows>{}); }

// States in blocks of nearly as many each, at most `kRows`.
struct Blocks {
    int64_t rows, count;
    explicit Blocks(int64_t rows) : rows(rows), count((rows + kRows - 1) / kRows) {}
    int64_t first(int64_t block) const { return rows * block / count; }
    int64_t size(int64_t block) const { return first(block + 1) - first(block); }
};

// x * sigmoid(x).
inline Vector silu(Vector x) { return x / (1.0f + power_of_two(x * -kLog2E)); }

// A thread's share of things that are counted from 0.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int64_t thread, int64_t threads)
        : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
};

// What RMSNorm multiplies a state with.
float norm_factor(const float* state, int64_t width, float epsilon) {
    Vector squares{};
    int64_t feature = 0;
    for (; feature + kLanes <= width; feature += kLanes) squares += loaded(state + feature) * loaded(state + feature);
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += squares[lane];
    for (; feature < width; ++feature) sum += state[feature] * state[feature];
    return 1 / __builtin_sqrtf(sum / width + epsilon);
}

// Puts some features of a block's states next to each other, times a factor of each state.
void lay_out(const float* group, int64_t width, const Blocks& blocks, int64_t block, Share features,
             const float* factors, float* space) {
    const int64_t first = blocks.first(block), rows = blocks.size(block);
    float* place = space + first * width;
    for (int64_t feature = features.begin; feature < features.end; ++feature)
        for (int64_t row = 0; row < rows; ++row) {
            const float value = group[(first + row) * width + feature];
            place[feature * rows + row] = factors == nullptr ? value : value * factors[first + row];
        }
}

// What all threads have summed up for a state.
float total(const float* partial, int64_t threads, int64_t stride, int64_t row) {
    double sum = 0;
    for (int64_t thread = 0; thread < threads; ++thread)
        for (int lane = 0; lane < kLanes; ++lane) sum += partial[thread * stride + row * kLanes + lane];
    return static_cast<float>(sum);
}

// Rotary position embedding of the first outputs, head by head of `size` of them: half a panel's columns are turned
// with the other half. Of each position the table holds cosines, and then sines, `size / 2` each.
struct Rotation {
    const float* table;
    const int64_t* positions;
    int64_t size, turned;

    void turn(Vector* values, int64_t row, int64_t column) const {
        const float* cosines = table + positions[row] * size + column % size / 2;
        const Vector cosine = loaded(cosines), sine = loaded(cosines + size / 2);
        const Vector left = values[0], right = values[1];
        values[0] = left * cosine - right * sine;
        values[1] = right * cosine + left * sine;
    }
};

struct Product {
    const float* states;
    int64_t width;
    const float* panels;
    const float* bias;
    const float* added;
    int64_t outputs;
    float* out;
    bool gated;
    Rotation rotation;

    // How many outputs a panel makes of a state.
    int64_t columns() const { return gated ? kLanes : kColumns; }
    int64_t n_panels() const { return (outputs + columns() - 1) / columns(); }

    // The products of a block's states with a panel's rows. Each block fetches its share of the next panel.
    void multiply_block(const float* space, const Blocks& blocks, int64_t panel, int64_t block, Tile& tile) const {
        const float* rows = panels + panel * width * kColumns;
        const int64_t step = 4 * kColumns / blocks.count;
        const char* ahead = reinterpret_cast<const char*>(rows + width * kColumns) + block * step * width;
        const float* laid_out = space + blocks.first(block) * width;
        multiply_rows(blocks.size(block))(laid_out, rows, kColumns, width, tile, ahead, step);
    }

    // Puts the products of one panel where they belong, and adds up their exponentials.
    void put(Tile& tile, int64_t panel, int64_t first, int64_t rows, float* sums) const {
        const int64_t column = panel * columns(), left = outputs - column;
        if (left < columns()) return put_part(tile, panel, first, rows, sums, left);
        for (int64_t row = 0; row < rows; ++row) {
            Vector* values = tile.sum[row];
            float* place = out + (first + row) * outputs + column;
            finish(values, panel);
            if (column < rotation.turned) rotation.turn(values, first + row, column);
            for (int v = 0; v < columns() / kLanes; ++v) {
                if (added != nullptr) values[v] += loaded(added + (place - out) + v * kLanes);
                store(place + v * kLanes, values[v]);
            }
            if (sums != nullptr) add_powers(values, sums + row * kLanes);
        }
    }

    // The same for the last panel, if it makes only `count` outputs.
    void put_part(Tile& tile, int64_t panel, int64_t first, int64_t rows, float* sums, int64_t count) const {
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t place = (first + row) * outputs + panel * columns();
            finish(tile.sum[row], panel);
            float values[kColumns];
            std::memcpy(values, tile.sum[row], sizeof values);
            for (int64_t i = 0; i < count; ++i) {
                if (added != nullptr) values[i] += added[place + i];
                out[place + i] = values[i];
            }
            for (int64_t i = count; i < kColumns; ++i) values[i] = -__builtin_inff();
            const Vector all[kVectors] = {loaded(values), loaded(values + kLanes)};
            if (sums != nullptr) add_powers(all, sums + row * kLanes);
        }
    }

    // Biases, which have as many places as panels have columns, and the gate.
    void finish(Vector* values, int64_t panel) const {
        if (bias != nullptr)
            for (int v = 0; v < kVectors; ++v) values[v] += loaded(bias + panel * kColumns + v * kLanes);
        if (gated) values[0] = silu(values[0]) * values[1];
    }

    static void add_powers(const Vector* values, float* sums) {
        Vector total = loaded(sums);
        for (int v = 0; v < kVectors; ++v) total += power_of_two(values[v] * kLog2E);
        store(sums, total);
    }
};

// Attention of tokens to their rows of the cache: of its row each sees the first columns, and some of the others.
struct Attention {
    const float *query, *key, *value;
    int64_t stride, value_stride, heads, shared, size;
    float *keys, *values;
    int64_t room;
    const int64_t *begin, *used, *slots, *first, *depth;
    const int32_t* seen;
    int64_t longest, window;
    float scaling;
    float* out;

    // Between two columns of a row.
    int64_t column_size() const { return heads / shared * size; }
    int64_t queries(int64_t row) const { return (begin[row + 1] - begin[row]) * shared; }
    int64_t n_panels(int64_t row) const { return (used[row] + kColumns - 1) / kColumns; }

    // Puts keys and values of a token where its row has a column for it.
    void write(int64_t token) const {
        const int64_t place = slots[token] * column_size(), bytes = 4 * column_size();
        std::memcpy(keys + place, key + token * stride, bytes);
        std::memcpy(values + place, value + token * value_stride, bytes);
    }

    // Lays out the keys of some columns, for one head, as a panel.
    void lay_out_keys(int64_t row, int64_t head, int64_t panel, float* space) const {
        const int64_t left = used[row] - panel * kColumns, count = left < kColumns ? left : kColumns;
        const float* place = keys + (row * room + panel * kColumns) * column_size() + head * size;
        for (int64_t feature = 0; feature < size; ++feature) {
            for (int64_t column = 0; column < count; ++column)
                space[feature * kColumns + column] = place[column * column_size() + feature];
            for (int64_t column = count; column < kColumns; ++column) space[feature * kColumns + column] = 0;
        }
    }

    // Turns a query's scores of all columns into weights, `rows` apart, and gives the factor that makes them add up to
    // 1.
    float weigh(int64_t token, float* scores, float* weights, int64_t rows, float* listed) const {
        // How far back the token may look, among the first columns and among the last tokens of its own path.
        const int64_t place = depth[token], position = first[token] + (place < 0 ? -1 : place);
        const int64_t back = position + 1 - window, begin = back > 0 ? back : 0, end = first[token];
        const int32_t* columns = seen + token * longest;
        int64_t count = 0;
        float most = -__builtin_inff();
        for (int64_t j = place + 1 > window ? place + 1 - window : 0; j <= place; ++j)
            if (columns[j] >= 0) listed[count++] = scores[columns[j]];
        for (int64_t i = 0; i < count; ++i) most = listed[i] > most ? listed[i] : most;
        for (int64_t column = begin; column < end; ++column) most = scores[column] > most ? scores[column] : most;
        Vector sum{};
        if (begin < end) {
            for (int lane = 0; lane < kLanes; ++lane) scores[end + lane] = -__builtin_inff();
            for (int64_t column = begin; column < end; column += kLanes) {
                const Vector power = exponential(loaded(scores + column), most);
                sum += power;
                store(scores + column, power);
            }
            for (int64_t column = begin; column < end; ++column) weights[column * rows] = scores[column];
        }
        for (int lane = 0; lane < kLanes; ++lane) listed[count + lane] = -__builtin_inff();
        for (int64_t i = 0; i < count; i += kLanes) {
            const Vector power = exponential(loaded(listed + i), most);
            sum += power;
            store(listed + i, power);
        }
        count = 0;
        for (int64_t j = place + 1 > window ? place + 1 - window : 0; j <= place; ++j)
            if (columns[j] >= 0) weights[columns[j] * rows] = listed[count++];
        float total = 0;
        for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
        return 1 / total;
    }

    static Vector exponential(Vector x, float most) {
        const Vector power = power_of_two((x - most) * kLog2E);
        // What is not seen weighs nothing, not next to nothing.
        return x == Vector{} - __builtin_inff() ? Vector{} : power;
    }

    // What is read now needs no fetching.
    static const char* nothing_ahead(const float* place) { return reinterpret_cast<const char*>(place); }

    // Numbers that `mix` needs room for.
    int64_t space(int64_t columns) const {
        const int64_t padded = columns + 2 * kColumns;
        return kRows * size + kRows * padded + kRows * padded + longest + 2 * kLanes;
    }

    // What a block of queries of one row and head makes of the cache.
    void mix(int64_t row, int64_t head, int64_t first_query, int64_t rows, const float* laid_out, float* space) const {
        const int64_t padded = (n_panels(row) + 1) * kColumns;
        float *asking = space, *scores = asking + kRows * size, *weights = scores + kRows * padded;
        float* listed = weights + kRows * padded;
        for (int64_t i = 0; i < rows; ++i) {
            const float* found = asked(row, head, first_query + i);
            for (int64_t feature = 0; feature < size; ++feature) asking[feature * rows + i] = found[feature] * scaling;
        }
        Tile tile;
        for (int64_t panel = 0; panel < n_panels(row); ++panel) {
            const float* place = laid_out + panel * size * kColumns;
            multiply_rows(rows)(asking, place, kColumns, size, tile, nothing_ahead(place), 0);
            for (int64_t i = 0; i < rows; ++i)
                for (int v = 0; v < kVectors; ++v)
                    store(scores + i * padded + panel * kColumns + v * kLanes, tile.sum[i][v]);
        }
        float factors[kRows];
        std::memset(weights, 0, 4 * used[row] * rows);
        for (int64_t i = 0; i < rows; ++i) {
            const int64_t token = begin[row] + (first_query + i) / shared;
            factors[i] = weigh(token, scores + i * padded, weights + i, rows, listed);
        }
        for (int64_t part = 0; part < size; part += kColumns) {
            const float* place = values + row * room * column_size() + head * size + part;
            multiply_rows(rows)(weights, place, column_size(), used[row], tile, nothing_ahead(place), 0);
            for (int64_t i = 0; i < rows; ++i)
                for (int v = 0; v < kVectors; ++v)
                    store(mixed(row, head, first_query + i) + part + v * kLanes, tile.sum[i][v] * factors[i]);
        }
    }

    // Queries of a row that share a head of keys: token by token all of their heads.
    const float* asked(int64_t row, int64_t head, int64_t number) const {
        return query + (begin[row] + number / shared) * stride + (head * shared + number % shared) * size;
    }
    float* mixed(int64_t row, int64_t head, int64_t number) const {
        return out + ((begin[row] + number / shared) * heads + head * shared + number % shared) * size;
    }
};

}  // namespace

extern "C" {

// How many rows of weights stand next to each other, feature by feature, in a panel.
int64_t genret_columns() { return kColumns; }

// out[i][j] = sum over f of states[i][f] * weights[j][f], + bias[j], + added[i][j].
//
// `panels` holds the weights, kColumns rows of them after the other, each feature by feature; rows that are missing
// in the last one are zeros. `bias` has a place for each of all these rows. If `gated`, the first half of a panel's
// rows are those of a gate: out[i][j] is the product with row j of the other halves, times the silu of that with row
// j of these. With an `epsilon` that is not negative states are divided by the root of epsilon and the mean of their
// squares first. The first `turned` outputs, if any, are turned as `Rotation` has it, state i as of `positions[i]`;
// `size` is a multiple of kColumns. `sums[i]` is the sum over j of exp(out[i][j]). `bias`, `added` and `sums` may be
// null. Gives 0, or 1 if there is no memory.
int32_t genret_product(const float* states, int64_t count, int64_t width, const float* panels, const float* bias,
                       const float* added, int64_t outputs, float* out, int32_t gated, float epsilon, float* sums,
                       const float* table, const int64_t* positions, int64_t size, int64_t turned, int32_t threads) {
    const Rotation rotation{table, positions, size, turned};
    const Product product{states, width, panels, bias, added, outputs, out, gated != 0, rotation};
    const int64_t most = count < kBlocks * kRows ? count : kBlocks * kRows;
    const int64_t summed = sums == nullptr ? 0 : most * kLanes;
    // States of a group of blocks, the factors of their norms, and the sums of each thread.
    float* space = static_cast<float*>(__builtin_malloc(4 * (most * width + most + threads * summed + 1)));
    if (space == nullptr) return 1;
    float *factors = space + most * width, *partial = factors + most;
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), n_threads = omp_get_num_threads();
        float* mine = summed ? partial + thread * summed : nullptr;
        for (int64_t begin = 0; begin < count; begin += most) {
            const Blocks blocks(count - begin < most ? count - begin : most);
            const float* group = states + begin * width;
            for (int64_t i = 0; i < summed; ++i) mine[i] = 0;
            if (epsilon >= 0) {
                for (int64_t row = thread; row < blocks.rows; row += n_threads)
                    factors[row] = norm_factor(group + row * width, width, epsilon);
#pragma omp barrier
            }
            const Share features(width, thread, n_threads);
            for (int64_t block = 0; block < blocks.count; ++block)
                lay_out(group, width, blocks, block, features, epsilon >= 0 ? factors : nullptr, space);
#pragma omp barrier
            const Share units(product.n_panels() * blocks.count, thread, n_threads);
            for (int64_t unit = units.begin; unit < units.end; ++unit) {
                const int64_t panel = unit / blocks.count, block = unit % blocks.count;
                const int64_t first = blocks.first(block);
                Tile tile;
                product.multiply_block(space, blocks, panel, block, tile);
                product.put(tile, panel, begin + first, blocks.size(block), summed ? mine + first * kLanes : nullptr);
            }
#pragma omp barrier
            if (summed)
                for (int64_t row = thread; row < blocks.rows; row += n_threads)
                    sums[begin + row] = total(partial, n_threads, summed, row);
#pragma omp barrier
        }
    }
    __builtin_free(space);
    return 0;
}

// out[i][f] = states[i][f] * factors[f], by the root of epsilon and the mean of the squares of states[i].
void genret_norm(const float* states, int64_t count, int64_t width, const float* factors, float epsilon, float* out,
                 int32_t threads) {
#pragma omp parallel for num_threads(threads) if (count * width > kWorthThreads)
    for (int64_t row = 0; row < count; ++row) {
        const float* state = states + row * width;
        const float factor = norm_factor(state, width, epsilon);
        for (int64_t feature = 0; feature < width; ++feature)
            out[row * width + feature] = state[feature] * factor * factors[feature];
    }
}

// Puts the keys and values of tokens into the cache, and attends to it.
//
// Tokens stand row by row, those of a row from begin[row] on; `stride` numbers lie between two of them in `query`
// [tokens, heads, size] and `key` [tokens, heads / shared, size], `value_stride` in `value`, which is like `key`.
// Keys and values go to the columns `slots` (row * room + column) of `keys` and `values` [rows, room, heads /
// shared, size]. A row has `used` columns. Of its row a token sees the `first` columns, which are its first
// positions, and those that stand in `seen` [tokens, longest] up to its own place, `depth`, which are the positions
// after these; -1 among them is none. It sees no further back than `window` positions. `size` is a multiple of
// kColumns. Gives 0, or 1 if there is no memory.
int32_t genret_attention(const float* query, const float* key, const float* value, int64_t stride,
                         int64_t value_stride, int64_t heads, int64_t shared, int64_t size, float* keys, float* values,
                         int64_t rows, int64_t room,
                         const int64_t* begin, const int64_t* used, const int64_t* slots, const int64_t* first,
                         const int64_t* depth, const int32_t* seen, int64_t longest, int64_t window, float scaling,
                         float* out, int32_t threads) {
    const Attention attention{query, key,   value, stride, value_stride, heads, shared,  size,   keys,    values, room,
                              begin, used,  slots, first,  depth,        seen,  longest, window, scaling, out};
    const int64_t n_heads = heads / shared;
    int64_t columns = 0;
    for (int64_t row = 0; row < rows; ++row) columns = used[row] > columns ? used[row] : columns;
    const int64_t panels = (columns + kColumns - 1) / kColumns, of_pair = panels * size * kColumns;
    // Rows and heads whose keys are laid out at a time.
    int64_t most = kLaidOut / (of_pair + 1) + 1;
    most = most < rows * n_heads ? most : rows * n_heads;
    const int64_t of_thread = attention.space(panels * kColumns);
    float* space = static_cast<float*>(__builtin_malloc(4 * (most * of_pair + threads * of_thread + 1)));
    if (space == nullptr) return 1;
#pragma omp parallel num_threads(threads)
    {
        const int64_t thread = omp_get_thread_num(), n_threads = omp_get_num_threads();
        float* mine = space + most * of_pair + thread * of_thread;
        const Share tokens(begin[rows], thread, n_threads);
        for (int64_t token = tokens.begin; token < tokens.end; ++token) attention.write(token);
        for (int64_t pair = 0; pair < rows * n_heads; pair += most) {
            const int64_t end = pair + most < rows * n_heads ? pair + most : rows * n_heads;
#pragma omp barrier
            const Share units((end - pair) * panels, thread, n_threads);
            for (int64_t unit = units.begin; unit < units.end; ++unit) {
                const int64_t row = (pair + unit / panels) / n_heads, head = (pair + unit / panels) % n_heads;
                if (attention.queries(row) > 0 && unit % panels < attention.n_panels(row))
                    attention.lay_out_keys(row, head, unit % panels, space + unit * size * kColumns);
            }
#pragma omp barrier
            int64_t count = 0;
            for (int64_t i = pair; i < end; ++i) count += Blocks(attention.queries(i / n_heads)).count;
            const Share share(count, thread, n_threads);
            int64_t number = 0;
            for (int64_t i = pair; i < end && number < share.end; ++i) {
                const Blocks blocks(attention.queries(i / n_heads));
                for (int64_t block = 0; block < blocks.count; ++block, ++number)
                    if (number >= share.begin && number < share.end)
                        attention.mix(i / n_heads, i % n_heads, blocks.first(block), blocks.size(block),
                                      space + (i - pair) * of_pair, mine);
            }
        }
    }
    __builtin_free(space);
    return 0;
}
}
