// One call of a kernel on fixed data, on one thread, for valgrind to count: count_instructions CASE ROWS WIDTH.
// See tests/compiled/test_instruction_counts.py.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "blended_kl.h"
#include "medoids.h"
#include "random.h"
#include "softmax_statistics.h"

using std::int64_t;

// What is counted: valgrind is told this name.
extern "C" __attribute__((noinline)) void counted(const std::function<void()>& call) { call(); }

namespace {

std::vector<float> floats(int64_t n, double scale, double shift, unsigned seed) {
  Random random(seed);
  std::vector<float> values(n);
  for (float& value : values) value = float(scale * random.uniform() + shift);
  return values;
}

toast::SoftRows dense(const std::vector<float>& values, int64_t rows, int64_t classes,
                      const std::vector<float>& entropy) {
  toast::SoftRows soft;
  soft.values = values.data();
  soft.rows = rows;
  soft.stride = soft.width = classes;
  soft.entropy = entropy.data();
  return soft;
}

// Returns whether there is a case of that name.
bool loss(const std::string& name, int64_t rows, int64_t classes) {
  constexpr int64_t tables = 8, listed = 64;
  const auto logits = floats(rows * classes, 6, -3, 1);
  const auto values = floats(tables * classes, 2.0 / double(classes), 0, 2);
  const auto entropy = floats(tables, 1, 0, 3);
  const auto probabilities = floats(rows * classes, 2.0 / double(classes), 0, 6);
  std::vector<float> gradient(rows * classes), mean(1), stats(2 * rows);
  std::vector<int64_t> target(rows), past_index(rows), argmax(rows);
  for (int64_t i = 0; i < rows; ++i) {
    target[i] = i % tables;
    past_index[i] = i % 2 ? -1 : i % tables;
  }
  std::vector<std::int32_t> indices(tables * listed);
  for (int64_t i = 0; i < tables * listed; ++i) indices[i] = std::int32_t(i % listed * (classes / listed));

  toast::BlendedKL problem{};
  problem.dtype = toast::DType::float32;
  problem.logits = logits.data();
  problem.rows = rows;
  problem.classes = problem.stride = classes;
  problem.target = target.data();
  problem.alpha = 0.4;
  problem.loss = mean.data();
  problem.gradient = gradient.data();
  problem.non_temporal_from = int64_t(1) << 40;  // the same path whatever cache there is
  std::vector<std::uint16_t> half_logits(rows * classes), half_gradient(rows * classes);
  if (name == "blended-bfloat16") {  // the logits alone: what converting them costs
    for (int64_t i = 0; i < rows * classes; ++i)
      std::memcpy(&half_logits[i], reinterpret_cast<const char*>(&logits[i]) + 2, 2);
    problem.dtype = toast::DType::bfloat16;
    problem.logits = half_logits.data();
    problem.gradient = half_gradient.data();
  }
  if (name == "blended" || name == "blended-bfloat16") {
    problem.soft = dense(values, tables, classes, entropy);
    problem.past = dense(values, tables, classes, entropy);
    problem.past_index = past_index.data();
    problem.past_weight = 1;
    problem.temperature = 3;
  } else if (name == "probabilities with stats") {
    problem.target = nullptr;
    problem.probabilities = dense(probabilities, rows, classes, entropy);
    problem.stats = stats.data();
    problem.argmax = argmax.data();
  } else if (name == "top-k") {
    problem.soft = dense(values, tables, listed, entropy);
    problem.soft.indices = indices.data();
  } else if (name != "plain") {
    return false;
  }
  counted([&] { toast::blended_kl_cpu(problem); });
  return true;
}

void medoids(toast::Metric metric, int64_t rows, int64_t width) {
  const auto x = floats(rows * width, 6, -3, 4);
  std::vector<int64_t> labels(rows), medoid(1);
  const toast::Matrix matrix{toast::DType::float32, x.data(), rows, width, width, 1};
  counted([&] {
    toast::class_medoids_cpu({matrix, {labels.data(), true, 1, nullptr, 0, -100, 1}, metric, medoid.data(), 1});
  });
}

void softmax_statistics(int64_t rows, int64_t classes) {
  const auto logits = floats(rows * classes, 6, -3, 5);
  std::vector<double> logsumexp(rows);
  std::vector<float> entropy(rows);
  counted([&] {
    toast::softmax_statistics_cpu(
        {toast::DType::float32, logits.data(), rows, classes, classes, 3.0, logsumexp.data(), entropy.data(), 1});
  });
}

int usage() {
  std::fprintf(stderr, "usage: count_instructions CASE ROWS WIDTH, with a CASE of test_instruction_counts.py\n");
  return 2;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return usage();
  const std::string name = arguments[1];
  const int64_t rows = std::atoll(arguments[2]), width = std::atoll(arguments[3]);
  const std::map<std::string, toast::Metric> metrics = {{"euclidean", toast::Metric::euclidean},
                                                        {"sqeuclidean", toast::Metric::sqeuclidean},
                                                        {"cosine", toast::Metric::cosine},
                                                        {"cityblock", toast::Metric::cityblock},
                                                        {"jeffreys", toast::Metric::jeffreys}};
  if (metrics.count(name) != 0)
    medoids(metrics.at(name), rows, width);
  else if (name == "softmax statistics")
    softmax_statistics(rows, width);
  else if (!loss(name, rows, width))
    return usage();
  return 0;
}
