output "namespace" {
  description = "Namespace of the operator."
  value       = helm_release.operator.namespace
}

output "version" {
  description = "Version of the chart that is installed."
  value       = helm_release.operator.version
}
