/** Energies and gradients as they come back from the mesh. */
import { TensorAssembler, damaged, fromMessage } from './tensors.js';
import { fromStatus } from './errors.js';

/**
 * @typedef {object} GradientOptions
 * @property {'geometry' | 'xray' | 'combined'} [target] geometry for a model without reflections,
 *   otherwise combined
 * @property {'ml' | 'ls' | 'mlhl' | 'twin_ls'} [xrayTarget] ml
 * @property {'fft' | 'direct'} [algorithm] of structure factors; fft
 * @property {('sites' | 'adp_iso' | 'occupancy' | 'adp_aniso')[]} [withRespectTo] sites
 * @property {number} [geometryWeight] in the combined target; 1
 * @property {number} [xrayWeight] in the combined target; the ratio of the gradient norms
 * @property {'float32' | 'float64'} [precision] that of the coordinates, float64 without any
 * @property {'cctbx' | 'fast'} [engine] the fastest that is equal
 * @property {string} [selection] the atoms that move, in mmtbx syntax; all
 * @property {boolean} [gradientsPerTerm] also a gradient per restraint term
 * @property {string} [twinLaw] for twin_ls, such as -h,-k,l
 */

/**
 * @typedef {object} SampleValue What was computed for one sample; one that is not ok has zero
 *   gradients.
 * @property {number} sample its index in the batch
 * @property {'ok' | 'non_finite' | 'out_of_range' | 'exploded' | 'degenerate' | 'failed'} status
 * @property {string} message why, when it is not ok
 * @property {{energy: number, gradientNorm: number,
 *   terms: {name: string, energy: number, count: number}[]} | null} geometry
 * @property {{target: string, value: number, rWork: number, rFree?: number, reflections: number,
 *   gradientNorm: number, twinFraction?: number} | null} xray
 * @property {{value: number, geometryWeight: number, xrayWeight: number, gradientNorm: number}
 *   | null} combined
 */

/** @typedef {{step: string, samplesDone: number, samplesTotal: number, workerId: string}} Progress */

/**
 * @typedef {object} Evaluation
 * @property {Record<string, import('./tensors.js').Tensor>} tensors the gradients by name:
 *   geometry_sites, xray_sites, combined_sites, xray_adp_iso, …; [N, 3] or [N], and with a batch of
 *   coordinates [B, N, 3] or [B, N]
 * @property {SampleValue[]} samples one per sample of the batch
 */

/**
 * @typedef {object} CalculationFacts
 * @property {Record<string, number>} stepTimes seconds per step, over all workers
 * @property {string[]} bundleIds the bundles that hold these gradients
 * @property {string[]} workerIds the workers that took part
 * @property {string} engine the engine that evaluated geometry
 * @property {string} traceId the trace of the call, 32 hexadecimal digits
 */

/** @typedef {Evaluation & CalculationFacts} Gradients */

/** Puts the answer to one calculation together. */
export class Answer {
  #assembler = new TensorAssembler();
  #tensors = new Map();
  #samples = [];
  #summary;
  #traceId;
  #onProgress;

  constructor(traceId, onProgress) {
    this.#traceId = traceId;
    this.#onProgress = onProgress;
  }

  take(response) {
    const { chunk, samples, progress, summary } = response;
    if (chunk) {
      const finished = this.#assembler.take(chunk);
      if (finished) this.#tensors.set(...finished);
    }
    if (samples) this.#samples.push(...samples.samples);
    if (progress) this.#onProgress?.(progress);
    if (summary) this.#summary = summary;
  }

  /** @returns {Gradients} */
  finish() {
    this.#assembler.finish();
    if (!this.#summary) throw damaged('ANSWER_TRUNCATED', 'it ended without its summary');
    const { stepTimes, bundleIds, workerIds, engine } = this.#summary;
    return {
      tensors: Object.fromEntries(this.#tensors),
      samples: this.#samples.sort((a, b) => a.sample - b.sample),
      stepTimes: Object.fromEntries(stepTimes.map(({ step, seconds }) => [step, seconds])),
      bundleIds,
      workerIds,
      engine,
      traceId: this.#traceId,
    };
  }
}

/** Puts the answers of one stream of a session together. */
export class StepAnswers {
  #assembler = new TensorAssembler();
  #tensors = new Map();
  #result;
  #missing = new Set();

  /**
   * Returns a step's number with its evaluation or error, once that is complete.
   *
   * @returns {{stepId: number, error?: Error, evaluation?: Evaluation} | undefined}
   */
  take(response, traceId) {
    if (response.result) {
      const { stepId, error, gradients, chunked } = response.result;
      if (error) return { stepId, error: fromStatus(error, traceId) };
      this.#result = response.result;
      this.#tensors = new Map(gradients.map((each) => [each.spec?.name, fromMessage(each)]));
      this.#missing = new Set(chunked);
    } else if (response.chunk) {
      const finished = this.#assembler.take(response.chunk);
      if (!finished) return undefined;
      this.#tensors.set(...finished);
      this.#missing.delete(finished[0]);
    }
    if (!this.#result || this.#missing.size > 0) return undefined;
    const { stepId, samples } = this.#result;
    return { stepId, evaluation: { tensors: Object.fromEntries(this.#tensors), samples } };
  }
}
