// models.h: what the bindings hold for a Python Checkpoint and a Python Model.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <memory>
#include <utility>

#include "backend/op_profile.h"
#include "checkpoint/checkpoint.h"
#include "engine/fork_guard.h"
#include "model/model.h"

namespace gemmantle::bindings {

struct PyCheckpoint {
  std::shared_ptr<const Checkpoint> files;
};

// The threads of a model do not survive a fork: the child is refused, and leaves the model as it is.
class PyModel {
 public:
  explicit PyModel(std::shared_ptr<Model> model, std::shared_ptr<OpProfile> profile = nullptr)
      : profile_(std::move(profile)), owner_(::getpid()) {
    Model* raw = model.get();
    model_ = std::shared_ptr<Model>(raw, [kept = std::move(model), owner = owner_](Model*) mutable {
      if (::getpid() != owner) new std::shared_ptr<Model>(std::move(kept));
    });
  }
  const Model& facts() const { return *model_; }
  const std::shared_ptr<Model>& get() const {
    refuse_in_child(owner_);
    return model_;
  }
  OpProfile* profile() const { return profile_.get(); }  // null unless the model was loaded with one

 private:
  std::shared_ptr<Model> model_;
  std::shared_ptr<OpProfile> profile_;
  pid_t owner_;
};

}  // namespace gemmantle::bindings
