"""Published methods as policies of this engine, written from their papers: they skip whole
evaluations and predict the guided derivative, as every other policy here. Where the papers keep
features of single blocks, that is another quantity, predicted in the same way; what is compared is
when a method computes and how it predicts."""
