// Protocol messages as JSON for --json: names as in the protos, fields at zero included.
#pragma once

#include <google/protobuf/message.h>

#include <string>

namespace morphserve::ctl {

std::string ToJson(const google::protobuf::Message& message);

}  // namespace morphserve::ctl
