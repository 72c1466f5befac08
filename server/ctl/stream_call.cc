#include "server/ctl/stream_call.h"

#include <chrono>

namespace morphserve::ctl {
namespace {

void Take(const v1::GenerateEvent& event, StreamResult* result,
          const std::function<void(const v1::Delta&)>& on_delta) {
  switch (event.event_case()) {
    case v1::GenerateEvent::kStarted: result->started = event.started(); break;
    case v1::GenerateEvent::kDelta: {
      const v1::Delta& delta = event.delta();
      if (delta.tokens() > 0) {
        result->messages.push_back(
            {.at = SteadySeconds(), .tokens = static_cast<int32_t>(delta.tokens())});
      }
      if (result->texts.size() <= delta.index()) {
        result->texts.resize(delta.index() + 1);
        result->token_ids.resize(delta.index() + 1);
      }
      result->texts[delta.index()] += delta.text();
      auto& ids = result->token_ids[delta.index()];
      ids.insert(ids.end(), delta.token_ids().begin(), delta.token_ids().end());
      if (on_delta) on_delta(delta);
      break;
    }
    case v1::GenerateEvent::kFinished: result->finished.push_back(event.finished()); break;
    case v1::GenerateEvent::kDone: result->done = event.done(); break;
    case v1::GenerateEvent::EVENT_NOT_SET: break;
  }
}

}  // namespace

double SteadySeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

StreamResult RunStream(const Connection& connection, Interrupt* interrupt,
                       const v1::ChatRequest* chat, const v1::GenerateRequest* generate,
                       const std::function<void(const v1::Delta&)>& on_delta) {
  StreamResult result;
  const auto stub = v1::Inference::NewStub(connection.inference());
  grpc::ClientContext context;
  connection.Prepare(&context);
  const Interrupt::Scope scope(interrupt, &context);
  result.sent_at = SteadySeconds();
  const auto reader = chat != nullptr ? stub->ChatStream(&context, *chat)
                                      : stub->GenerateStream(&context, *generate);
  v1::GenerateEvent event;
  while (reader->Read(&event)) Take(event, &result, on_delta);
  result.status = reader->Finish();
  result.ended_at = SteadySeconds();
  return result;
}

}  // namespace morphserve::ctl
