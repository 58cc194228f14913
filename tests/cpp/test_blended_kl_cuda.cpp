// The CUDA kernel, run on a CPU by tools/cuda_on_cpu, against plain double loops: every size of cluster, rows held and
// read, in many orders of the threads.
#include "blended_kl_compare.h"
#include "cuda/blended_kl.h"
#include "cuda/launch.cuh"
#include "sanitizers.h"

namespace {

using toast::Plan;
using toast::RowKind;

constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16};

unsigned problems = 0;
int of_kind[int(RowKind::any) + 1];  // how many problems

// A plan for rows of this problem on a cluster of so many threads: what they cannot hold they read.
Plan spread(const BlendedKL& p, int threads, int cluster) {
  const RowKind kind = toast::row_kind(p);
  const int64_t vectors = p.classes * toast::size_of(p.dtype) / 16;
  return {vectors <= int64_t(toast::vectors_of(kind)) * threads * cluster ? kind : RowKind::any, threads, cluster};
}

// Fresh outputs, all NaN, and then the kernel's; of a call that wants no more than is said.
void run(Problem& problem, const Plan& plan, int clusters, unsigned seed, bool gradient = true, bool stats = true) {
  BlendedKL& p = problem.p;
  problem.make_outputs();
  if (!gradient) p.gradient = nullptr;
  if (!stats) p.stats = nullptr;
  Guarded<double> workspace(toast::workspace_size(p.rows));
  cuda_on_cpu::seed = seed;
  toast::blended_kl_cuda(p, plan, clusters, workspace.data(), nullptr);
  CHECK(problem.intact() && workspace.intact());
}

struct Outputs {
  Elements loss, gradient, stats;
  Guarded<int64_t> argmax;

  explicit Outputs(Problem& problem)
      : loss(std::move(problem.loss)),
        gradient(std::move(problem.gradient)),
        stats(std::move(problem.stats)),
        argmax(std::move(problem.argmax)) {}
  // In what the problem's last run was to give.
  bool equal(Problem& problem) {
    return ::equal(loss, problem.loss) && (problem.p.gradient == nullptr || ::equal(gradient, problem.gradient)) &&
           (problem.p.stats == nullptr || (::equal(stats, problem.stats) && ::equal(argmax, problem.argmax)));
  }
};

// Against the truth with the threads in order; then the same bits in random orders, on other grids, and where less is
// wanted: without stats, rows that are ignored are not looked at.
void test(Problem& problem, const Plan& plan) {
  check::current_case = problem.name + ", kind " + std::to_string(int(plan.kind)) + ", " +
                        std::to_string(plan.threads) + " threads, clusters of " + std::to_string(plan.cluster);
  ++of_kind[int(plan.kind)];
  run(problem, plan, 1, 0);
  compare(problem);
  Outputs first(problem);
  unsigned seed = 100 * problems;
  for (const bool gradient : {true, false})
    for (const bool stats : {true, false}) {
      ++seed;
      if (kRacesAreWatched && (gradient || stats)) continue;  // they were found in the first order
      run(problem, plan, 1 + (problems + seed) % (problem.p.rows + 2), seed, gradient, stats);
      CHECK(first.equal(problem));
    }
}

void test(DType dtype, int64_t rows, int64_t classes, int cluster) {
  const unsigned seed = problems++;
  Problem problem = make_problem(seed, dtype, rows, classes, seed % 2 == 0);
  test(problem, spread(problem.p, seed % 3 == 0 ? 64 : 32, cluster));
}

// A label or past_index out of range: the row is NaN, and to all others it is as if it were ignored.
void test_out_of_range() {
  int bad_rows = 0;
  for (unsigned seed = 0; seed < 60; ++seed) {
    Problem problem = make_problem(seed, kDTypes[seed % 3], 5, 37, seed % 2 == 0);
    BlendedKL& p = problem.p;
    check::current_case = problem.name + ", out of range";
    if (p.target == nullptr) continue;
    const Plan plan = spread(p, 32, 1 << seed % 3);
    const int64_t row = 1 + seed % 3, wrong[] = {p.classes, int64_t(1) << 40, -1};
    int64_t* index = p.past_index != nullptr && seed % 2 == 0 ? &problem.past_index[row]
                     : p.target_b != nullptr && seed % 3 == 0 ? &problem.target_b[row]
                                                              : &problem.target[row];
    const bool is_past = index == &problem.past_index[row];
    // The other label may be ignored, but then this one may not; a row that is ignored has no past.
    if (is_past && problem.target[row] == p.ignore_index) continue;
    *index = is_past && seed % 4 == 0 ? -2 : wrong[seed % 3];
    if (is_past && *index == -1) *index = p.past.rows;
    run(problem, plan, 2, seed);
    Outputs bad(problem);
    problem.target[row] = p.ignore_index;
    if (p.target_b != nullptr) problem.target_b[row] = p.ignore_index;
    run(problem, plan, 2, seed);
    ++bad_rows;
    for (int64_t i = 0; i < p.rows; ++i)
      for (int64_t j = 0, at = i * p.classes; j < p.classes; ++j, ++at) {
        const double got = bad.gradient.get(at), other = problem.gradient.get(at);
        if (i == row)
          CHECK(std::isnan(got) && other == 0);
        else
          CHECK(got == other || (std::isnan(got) && std::isnan(other)));
      }
    CHECK(std::isnan(bad.loss.get(p.reduction == Reduction::none ? row : 0)));
    CHECK(std::isnan(bad.stats.get(row)) && !(problem.stats.get(row) != 0));
  }
  CHECK(bad_rows > 20);
}

// More rows than the threads of the small kernels see at once: of the loss's sum from 257 on, of the normalisers from
// 8193 on, and those are then the sums of 32 blocks.
void test_many_rows() {
  struct Case {
    int64_t rows, classes;
    unsigned seed;  // of a problem with weights, a past for some rows and rows that are ignored, and a finite loss
  };
  for (const auto& [rows, classes, seed] : {Case{1100, 5, 57}, {9000, 3, 69}})
    for (Reduction reduction : {Reduction::mean, Reduction::sum}) {
      if (rows == 9000 && reduction == Reduction::sum) continue;  // it has no normalisers
      Problem problem = make_problem(seed, DType::float32, rows, classes);
      problem.p.reduction = reduction;
      check::current_case = problem.name + ", reduction " + std::to_string(int(reduction));
      run(problem, spread(problem.p, 32, 1), 7, unsigned(reduction));
      compare(problem);
      CHECK(problem.p.weight != nullptr && problem.p.past.values != nullptr && std::isfinite(problem.loss.get(0)));
    }
}

// alpha and lambda that lie on the device.
void test_settings_on_the_device() {
  for (unsigned seed = 0; seed < 40; ++seed) {
    Problem problem = make_problem(seed, DType::float32, 4, 50);
    check::current_case = problem.name + ", settings on the device";
    const Plan plan = spread(problem.p, 32, 2);
    run(problem, plan, 2, seed);
    Outputs given(problem);
    Guarded<float> settings(2);
    settings[0] = float(std::exchange(problem.p.alpha, 0.123));
    settings[1] = float(std::exchange(problem.p.past_weight, 0.123));
    problem.p.alpha_on_device = &settings[0];
    problem.p.past_weight_on_device = &settings[1];
    run(problem, plan, 2, seed);
    CHECK(given.equal(problem));
  }
}

// Rows that begin at every multiple of an element from 16 bytes, logits and gradient alike and not.
void test_offsets() {
  for (DType dtype : kDTypes)
    for (int64_t classes : {1, 2, 7, 8, 9, 1003})
      for (int64_t offset = 0; offset < 16 / toast::size_of(dtype); ++offset) {
        Problem problem = make_problem(problems++, dtype, 4, classes);
        BlendedKL& p = problem.p;
        check::current_case = problem.name + ", offset " + std::to_string(offset);
        p.stride = classes + int64_t(problems) % 3;
        problem.logits = Elements(dtype, offset + p.rows * p.stride);
        for (int64_t i = 0; i < p.rows; ++i)
          for (int64_t j = 0; j < classes; ++j) problem.logits.set(offset + i * p.stride + j, problem.z[i][j]);
        problem.logits.forbid(0, offset);
        p.logits = problem.logits.at(offset);
        run(problem, spread(p, 32, 1 + int(offset) % 2), 2, problems);
        compare(problem);
      }
}

// What is planned for a GPU holds the row by the smallest cluster; the plans that the library makes for itself also
// run.
void test_plans() {
  int held = 0, read = 0;
  for (const toast::Limits& gpu : {toast::Limits{65536, 16}, {65536, 8}, {65536, 1}, {8192, 16}})
    for (DType dtype : kDTypes)
      for (int64_t classes : {1, 1000, 16385, 21841, 65536, 128256, 262144, 360000, 2000003})
        for (bool target : {false, true}) {
          BlendedKL p{};
          p.dtype = dtype;
          p.classes = classes;
          p.target = &classes;
          p.label_smoothing = target ? 0.1 : 0;
          const RowKind kind = toast::row_kind(p);
          const Plan plan = toast::plan(kind, dtype, classes, gpu);
          check::current_case =
              std::to_string(classes) + " classes on clusters of up to " + std::to_string(gpu.cluster);
          CHECK(plan.cluster >= 1 && plan.cluster <= gpu.cluster && plan.threads % 32 == 0 && plan.threads >= 32);
          CHECK(plan.threads * toast::registers_of(plan.kind) <= gpu.registers);
          const int64_t vectors = classes * toast::size_of(dtype) / 16;
          const int64_t of_a_block = int64_t(toast::vectors_of(kind)) * (gpu.registers / toast::registers_of(kind));
          CHECK((plan.kind == kind) == (vectors <= of_a_block * gpu.cluster));
          ++(plan.kind == kind ? held : read);
          if (plan.kind != kind) continue;
          CHECK(vectors <= int64_t(toast::vectors_of(kind)) * plan.threads * plan.cluster);
          CHECK(plan.cluster == 1 || vectors > of_a_block * (plan.cluster - 1));
        }
  CHECK(held > 50 && read > 20);

  const cuda_on_cpu::Device before = cuda_on_cpu::device;
  for (int registers : {4096, 8192})
    for (unsigned seed = 0; seed < 12; ++seed) {
      cuda_on_cpu::device.number = registers;
      cuda_on_cpu::device.registers_per_block = registers;
      cuda_on_cpu::seed = seed;
      Problem problem = make_problem(seed, kDTypes[seed % 3], 2, 5001, seed % 2 == 0);
      check::current_case = problem.name + ", as the library plans";
      Guarded<double> workspace(toast::workspace_size(2));
      toast::blended_kl_cuda(problem.p, workspace.data(), nullptr);
      compare(problem);
    }
  cuda_on_cpu::device = before;
}

void empty_kernel() {}

// On a GPU that has room for no cluster as large as the first plan's, a smaller one; on any, never one that is too
// large. What fits in the one multiprocessor of a graphics processing cluster: `room` threads.
void test_small_gpus() {
  const cuda_on_cpu::Device before = cuda_on_cpu::device;
  int smaller = 0;
  for (int room : {64, 128, 256})
    for (unsigned seed = 0; seed < 9; ++seed) {
      cuda_on_cpu::device.number = 100 + room;
      cuda_on_cpu::device.registers_per_block = 4096;
      cuda_on_cpu::device.multiprocessors = 4;
      cuda_on_cpu::device.multiprocessors_per_gpc = 1;
      cuda_on_cpu::device.threads_per_multiprocessor = room;
      Problem problem = make_problem(seed, kDTypes[seed % 3], 1, 5001, true);
      check::current_case = problem.name + ", room for " + std::to_string(room) + " threads";
      problem.p.reduction = Reduction::none;  // the rows' kernel is the last to run
      problem.make_outputs();
      const Plan wanted = toast::plan(toast::row_kind(problem.p), problem.p.dtype, 5001, {4096, toast::kMostCluster});
      Guarded<double> workspace(toast::workspace_size(1));
      toast::blended_kl_cuda(problem.p, workspace.data(), nullptr);
      compare(problem);
      const int used = int(gridDim.x * blockDim.x);
      CHECK(used <= room);
      if (wanted.cluster * wanted.threads <= room) continue;
      CHECK(2 * used >= room);
      ++smaller;
    }
  CHECK(smaller > 8);
  // Without a kernel's consent to more than 8 blocks CUDA calls 16 invalid: there is no room, and no error is left
  // over.
  CHECK(toast::Grid(1, 16, 32, nullptr).at_once(empty_kernel) == 0 && cudaGetLastError() == cudaSuccess);
  cuda_on_cpu::device = before;
}

void test_scale() {
  for (DType dtype : kDTypes)
    for (int64_t size : {0, 1, 7, 8, 1000, 5003})
      for (float factor : {1.0f, -0.37f, NAN}) {
        const int most_blocks = factor == 1 ? toast::kMostScaleBlocks : 1;  // one block goes over the 5003 in turns
        Elements gradient(dtype, size);
        std::vector<double> values;
        Random random{unsigned(size)};
        for (int64_t i = 0; i < size; ++i) values.push_back(gradient.set(i, random.normal()));
        toast::scale_cuda(dtype, gradient.data(), size, &factor, nullptr, most_blocks);
        for (int64_t i = 0; i < size; ++i) {
          Elements wanted(dtype, 1);
          const double value = wanted.set(0, double(float(values[i]) * factor));
          CHECK(gradient.get(i) == value || (std::isnan(value) && std::isnan(gradient.get(i))));
        }
        CHECK(gradient.intact());
      }
}

}  // namespace

int main() {
  for (DType dtype : kDTypes) {
    // Whole and broken vectors of 4 and 8; threads without any, and more rows than clusters.
    for (int64_t classes : {1, 2, 3, 7, 8, 9, 15, 17, 33, 64, 65, 130})
      for (int repeat = 0; repeat < 5; ++repeat) test(dtype, 1 + repeat, classes, 1 << repeat);
    for (int64_t classes : {511, 1024, 2049})
      for (int cluster : {1, 2, 3, 6, 8, 16}) test(dtype, 2, classes, cluster);
    test(dtype, 0, 5, 2);
    test(dtype, 300, 9, 1);
  }
  for (int count : of_kind) CHECK(count > 8);
  test_offsets();
  test_many_rows();
  test_out_of_range();
  test_settings_on_the_device();
  test_plans();
  test_small_gpus();
  test_scale();
  return check::finish(problems);
}
