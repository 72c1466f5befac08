#include "morph/logit_distance.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/thread_pool.h"

namespace morphserve {
namespace {

constexpr int32_t kBlockRows = SelectionModel::kLogitRows;

struct Row {
  double log_sum = 0;  // log of the sum of exp(logit)
  int32_t best = 0;
};

Row Summarise(const float* logits, int64_t vocab) {
  const float* const highest = std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    sum += static_cast<double>(std::exp(logits[i] - *highest));
  }
  return {static_cast<double>(*highest) + std::log(sum), static_cast<int32_t>(highest - logits)};
}

PredictionTotals Compare(const float* teacher, const float* student, int64_t vocab, int32_t next) {
  const Row t = Summarise(teacher, vocab);
  const Row s = Summarise(student, vocab);
  double kl = 0;
  for (int64_t i = 0; i < vocab; ++i) {
    const double log_p = static_cast<double>(teacher[i]) - t.log_sum;
    const double log_q = static_cast<double>(student[i]) - s.log_sum;
    kl += static_cast<double>(std::exp(static_cast<float>(log_p))) * (log_p - log_q);
  }
  return {.count = 1,
          .kl = kl,
          .nll = s.log_sum - static_cast<double>(student[next]),
          .teacher_nll = t.log_sum - static_cast<double>(teacher[next]),
          .right = s.best == next,
          .teacher_right = t.best == next,
          .agree = s.best == t.best};
}

}  // namespace

void PredictionTotals::Add(const PredictionTotals& more) {
  count += more.count;
  kl += more.kl;
  nll += more.nll;
  teacher_nll += more.teacher_nll;
  right += more.right;
  teacher_right += more.teacher_right;
  agree += more.agree;
}

int64_t LogitDistance::Bytes(const ModelConfig& config) {
  return 2 * kBlockRows * int64_t{config.vocab} * static_cast<int64_t>(sizeof(float));
}

LogitDistance::LogitDistance(SelectionModel* model) : model_(model) {
  const auto floats = static_cast<size_t>(kBlockRows * int64_t{model->source().config->vocab});
  teacher_logits_.resize(floats);
  student_logits_.resize(floats);
}

void LogitDistance::AddCompare(WorkList* list, const CalibrationSample* sample,
                               const float* teacher, const float* student, PredictionTotals* totals,
                               std::vector<uint8_t>* per_position) {
  const auto scored = static_cast<int32_t>(sample->scored.size());
  for (int32_t first = 0; first < scored; first += kBlockRows) {
    const int32_t count = std::min(kBlockRows, scored - first);
    const int64_t at = int64_t{first} * model_->source().config->hidden;
    list->Add([=, this] { return model_->LogitsOf(teacher + at, count, teacher_logits_.data()); });
    list->Add([=, this] { return model_->LogitsOf(student + at, count, student_logits_.data()); });
    list->Add([=, this] {
      const int64_t vocab = model_->source().config->vocab;
      std::vector<PredictionTotals> rows(static_cast<size_t>(count));
      kernels::cpu::ThreadPool* const pool = model_->source().stream.pool;
      pool->ForEachWorker([&](int32_t worker) {
        const auto part = pool->Part(count, worker);
        for (int64_t r = part.begin; r < part.end; ++r) {
          const auto position = static_cast<size_t>(sample->scored[static_cast<size_t>(first + r)]);
          rows[static_cast<size_t>(r)] =
              Compare(teacher_logits_.data() + r * vocab, student_logits_.data() + r * vocab, vocab,
                      sample->tokens[position + 1]);
        }
      });
      for (const PredictionTotals& row : rows) {
        totals->Add(row);
        if (per_position != nullptr) per_position->push_back(row.right != 0);
      }
      return absl::OkStatus();
    });
  }
}

}  // namespace morphserve
