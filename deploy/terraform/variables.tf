variable "name" {
  description = "Name of the Helm release."
  type        = string
  default     = "tierline"
}

variable "namespace" {
  description = "Namespace of the operator, with what endpoints share."
  type        = string
  default     = "hyperpod-inference-system"
}

variable "chart" {
  description = "Where the chart is: a folder, an archive, or oci://REGISTRY/CHART. null: the one beside this module."
  type        = string
  default     = null
}

variable "chart_version" {
  description = "Version of a chart that comes from a registry."
  type        = string
  default     = null
}

variable "values" {
  description = "Values of the chart, as docs/install.md has them."
  type        = any
  default     = {}
}

variable "timeout_s" {
  description = "How long to wait until the operator is ready."
  type        = number
  default     = 300
}
