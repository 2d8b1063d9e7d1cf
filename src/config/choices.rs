//! Settings that are one of a few words, and what each word means. Never decides what follows from one.

use super::range::Given;
use super::rows::{Leaf, choices};

choices! {
    /// The policy loss.
    Algorithm {
        /// Advantage-Induced Policy Alignment.
        Apa = "apa",
        /// Advantage-weighted regression.
        Awr = "awr",
        /// Proximal policy optimization.
        Ppo = "ppo",
        /// REINFORCE, each answer compared with the others to its prompt, with PPO's ratio and KL penalty; no critic.
        Rloo = "rloo",
    }

    /// The action of APA's loss: what a reward is credited to.
    Credit {
        /// Each token, with an advantage of its own.
        Token = "token",
        /// The answer as a whole.
        Response = "response",
    }

    /// Number format of the frozen weights' matrix products.
    Dtype {
        /// bf16 where the processor multiplies it, else f32.
        Auto = "auto",
        /// 32-bit floats.
        F32 = "f32",
        /// bfloat16 with 32-bit sums.
        Bf16 = "bf16",
    }

    /// How frozen weights are held in memory.
    Weights {
        /// Packed where memory allows, else quantized.
        Auto = "auto",
        /// In the order in which products read them.
        Packed = "packed",
        /// As the model's file stores them.
        Quantized = "quantized",
    }
}

choices! {
    /// What a server of a ledger does.
    Role {
        /// It serves, and trains and decides which version serves unless another server of the ledger does.
        All = "all",
        /// It serves what another server of the same ledger decides.
        Server = "server",
        /// It answers nobody, and trains and decides unless another server of the ledger does.
        Trainer = "trainer",
    }
}

choices! {
    /// What becomes of a candidate that passes every limit.
    Promotion {
        /// It serves; where enough users rate, one that was not shown to be as good is tried on a share of them first.
        Auto = "auto",
        /// It serves.
        Serve = "serve",
        /// It is tried on a share of the users first, unless it was shown to be as good.
        Canary = "canary",
        /// It waits for a person to promote it.
        Propose = "propose",
    }

    /// Which version serves after a trial that decided nothing.
    Undecided {
        /// The one that served before.
        Parent = "parent",
        /// The one that was tried.
        Candidate = "candidate",
    }
}
