// blended_kl against plain double loops, with 1, 2 and 3 threads, its gradient written by non-temporal stores or not.
#include "blended_kl_compare.h"

namespace {

constexpr DType kDTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

unsigned problems = 0;

void test(DType dtype, int64_t rows, int64_t classes) {
  Problem problem = make_problem(problems++, dtype, rows, classes);
  check::current_case = problem.name;
  toast::blended_kl_cpu(problem.p);
  CHECK(problem.intact());
  compare(problem);

  Elements loss = std::move(problem.loss), gradient = std::move(problem.gradient), stats = std::move(problem.stats);
  Guarded<int64_t> argmax = std::move(problem.argmax);
  for (int threads = 2; threads <= 3; ++threads) {
    problem.make_outputs();
    problem.p.threads = threads;
    problem.p.non_temporal_from = threads == 2 ? 0 : std::int64_t(1) << 40;
    toast::blended_kl_cpu(problem.p);
    CHECK(problem.intact());
    CHECK(equal(problem.loss, loss) && equal(problem.gradient, gradient) && equal(problem.stats, stats));
    CHECK(equal(problem.argmax, argmax));
  }
  problem.make_outputs();
  problem.p.gradient = problem.p.stats = nullptr;
  toast::blended_kl_cpu(problem.p);
  CHECK(equal(problem.loss, loss));
}

// An index out of range is an error, and then nothing has been written.
void test_out_of_range() {
  int refused = 0;
  auto expect_refusal = [&](Problem& problem, int64_t& index, int64_t value) {
    const int64_t before = index;
    index = value;
    try {
      toast::blended_kl_cpu(problem.p);
    } catch (const std::out_of_range&) {
      ++refused;
    }
    index = before;
    CHECK(std::isnan(problem.loss.get(0)) && std::isnan(problem.gradient.get(0)));
  };
  int expected = 0;
  for (unsigned seed = 0; seed < 100; ++seed) {
    Problem problem = make_problem(seed, DType::float32, 5, 7);
    check::current_case = problem.name;
    if (problem.p.target != nullptr) expect_refusal(problem, problem.target[4], 7), ++expected;
    if (problem.p.target_b != nullptr) expect_refusal(problem, problem.target_b[2], -1), ++expected;
    if (problem.p.past_index != nullptr)
      expect_refusal(problem, problem.past_index[3], problem.p.past.rows), ++expected;
  }
  CHECK(refused == expected && expected > 100);
}

// A row of probabilities that are all 0 has a cross-entropy of 0, whatever its logits: 0 * inf and 0 * NaN are 0 there.
void test_no_mass() {
  check::current_case = "probabilities of 0";
  constexpr int64_t rows = 3, classes = 3;
  const std::vector<float> probabilities(rows * classes);
  std::vector<float> logits{1, -INFINITY, 2, -INFINITY, -INFINITY, -INFINITY, 1, NAN, 2}, loss(rows), stats(2 * rows);
  std::vector<int64_t> argmax(rows);
  BlendedKL p{};
  p.dtype = DType::float32;
  p.logits = logits.data();
  p.rows = rows;
  p.classes = p.stride = classes;
  p.probabilities.values = probabilities.data();
  p.probabilities.rows = rows;
  p.probabilities.stride = p.probabilities.width = classes;
  p.reduction = Reduction::none;
  p.loss = loss.data();
  p.stats = stats.data();
  p.argmax = argmax.data();
  toast::blended_kl_cpu(p);
  for (int64_t i = 0; i < rows; ++i) CHECK(stats[i] == 0);
}

// Where the processor is slow with denormals, a float of the kernel that would be one is 0; those of its caller are
// kept.
void test_denormals() {
  constexpr int64_t classes = 100;
  std::vector<float> past(classes), upstream{1.0f / 1024};
  past[0] = 1;
  const float entropy = 0;
  const int64_t zero = 0;
  int denormals = 0;
  for (double temperature : {1.0, 2.0, 3.0, 4.0, 2.5})
    for (double past_weight : {0.0, 1.0})
      for (double lead = 70; lead < 95 * temperature; lead += 1.5) {
        check::current_case = "T = " + std::to_string(temperature) + ", past " + std::to_string(past_weight) +
                              ", a logit by " + std::to_string(lead) + " above";
        std::vector<float> logits(classes), gradient(classes);
        logits[0] = float(lead);
        float loss;
        BlendedKL p{};
        p.dtype = DType::float32;
        p.logits = logits.data();
        p.rows = 1;
        p.classes = p.stride = classes;
        p.target = p.past_index = &zero;
        p.past.values = past.data();
        p.past.rows = 1;
        p.past.stride = p.past.width = classes;
        p.past.entropy = &entropy;
        p.past_weight = past_weight;
        p.temperature = temperature;
        p.upstream = upstream.data();
        p.loss = &loss;
        p.gradient = gradient.data();
        toast::blended_kl_cpu(p);
        const double wanted =
            (std::exp(-lead) + past_weight * temperature * std::exp(-lead / temperature)) * double(upstream[0]);
        denormals += wanted < 0x1p-126;
        for (int64_t j = 1; j < classes; ++j) {
          CHECK(close(gradient[j], wanted, 0x1p-126 + 1e-5 * wanted));
#if defined(__SSE2__)
          CHECK(gradient[j] == 0 || gradient[j] >= 0x1p-126f);
#endif
        }
        volatile float small = 0x1p-100f;
        CHECK(small * 0x1p-40f > 0);
      }
  CHECK(denormals > 50);
}

}  // namespace

int main() {
  check::start();
  for (DType dtype : kDTypes) {
    // Whole and broken vectors of 8 and 16 lanes, whole and broken chunks of 2048 classes.
    for (int64_t classes : {1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129})
      for (int repeat = 0; repeat < 24; ++repeat) test(dtype, 1 + repeat % 7, classes);
    for (int64_t classes : {2047, 2048, 2049, 2063, 2064, 2065, 4095, 4096, 4097, 6145})
      for (int repeat = 0; repeat < 4; ++repeat) test(dtype, 1 + repeat % 3, classes);
    // Enough work for three threads: rows of one chunk, rows of several, and few long rows, whose chunks are shared
    // out.
    for (int repeat = 0; repeat < 2; ++repeat) {
      test(dtype, 53, 1021);
      test(dtype, 13, 4097);
      test(dtype, 2, 30011);
    }
    test(dtype, 0, 5);
  }
  test_out_of_range();
  test_no_mass();
  test_denormals();
  return check::finish(problems);
}
